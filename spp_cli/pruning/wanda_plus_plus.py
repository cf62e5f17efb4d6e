"""Wanda++: Wanda with the gradients of a block's output (Yang et al. 2025, arXiv:2503.04992)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field

from spp_cli import processes
from spp_cli.deferred import Tensor, torch
from spp_cli.pruning.method import Pruned, PruningMethod
from spp_cli.pruning.region import Region
from spp_cli.pruning.statistics import Gram, InputNorm
from spp_cli.pruning.wanda import never_zero
from spp_cli.sparsity.masks import zeroed
from spp_cli.sparsity.patterns import Pattern

__all__ = ["WandaPlusPlus"]


class WandaPlusPlus(PruningMethod):
    """Rank weights inside each row by (scale · G + ‖X‖) · |W|, after a few steps on the block.

    G[i, j] is the root mean square, over calibration sequences, of the gradient of the block's
    output norm by the weight; ‖X[:, j]‖ runs over all tokens. Before, ``iterations`` times, the
    block is pruned by that score, and its weights learn, sequence by sequence, to give what the
    dense block gives.
    """

    statistic: ClassVar[type] = InputNorm
    one_by_one: ClassVar[bool] = True

    name: Literal["wanda++"] = "wanda++"
    scale: float = Field(100.0, ge=0, description="Weight of the gradient in the score, α")
    iterations: int = Field(
        5, ge=0, description="Times that the block is pruned and learns before; 0: score alone"
    )
    samples: int = Field(32, ge=1, description="Sequences it learns from in an iteration")
    learning_rate: float = Field(
        3e-7, gt=0, description="Of RMSprop in these steps; a small model wants more"
    )

    @property
    def sees_blocks(self) -> bool:
        return True

    def see_block(self, region: Region, patterns: Mapping[str, Pattern]) -> dict[str, Tensor]:
        """Move the block's weights, then return G by linear: (out_features, in_features)."""
        if self.iterations:
            self._optimize(region, patterns, _regional_gradients(region))
        return _regional_gradients(region)

    def block_workspace(self, weights: int) -> int:
        # G and gradients; dense and moved weights, and RMSprop's averages.
        return 4 * weights * (5 if self.iterations else 2)

    def prune(self, weight: Tensor, prepared: InputNorm | Gram, pattern: Pattern) -> Pruned:
        """Choose what stays of ``weight`` as if no gradient were known: as Wanda does."""
        return self.prune_seen(weight, prepared, pattern, torch.zeros_like(weight))

    def prune_seen(
        self, weight: Tensor, prepared: InputNorm | Gram, pattern: Pattern, seen: Tensor
    ) -> Pruned:
        """Choose what stays of ``weight``; ``seen`` is its G."""
        scores = self._scores(weight, prepared, prepared.samples, seen)
        keep = pattern.keep(scores, within="row")
        return Pruned(zeroed(weight, keep), keep)

    def _scores(
        self, weight: Tensor, known: InputNorm | Gram, samples: float, gradient: Tensor
    ) -> Tensor:
        norm = never_zero(known.norm()) * math.sqrt(samples)
        return weight.abs() * (self.scale * gradient + norm)

    def _optimize(
        self, region: Region, patterns: Mapping[str, Pattern], gradients: Mapping[str, Tensor]
    ) -> None:
        """Prune and move the block's weights in turns, towards the outputs of the dense block."""
        region.keep_dense()
        weights = {
            linear.name: linear.weight.to(torch.float32, copy=True) for linear in region.linears
        }
        optimizer = torch.optim.RMSprop(weights.values(), lr=self.learning_rate)
        draw = torch.Generator().manual_seed(region.index)
        count = processes.agree_on_lowest(min(len(region), -(-self.samples // processes.count())))
        share = count * processes.count() / region.batches
        for _ in range(self.iterations):
            numbers = torch.randperm(len(region), generator=draw)[:count].tolist()
            region.set(region.dense)
            targets = [region.output(number).cpu() for number in numbers]
            region.set(weights)
            for name, known in region.known(numbers, InputNorm).items():
                if known is not None:  # an expert that none of these reaches learns from none
                    some: Any = known[InputNorm]
                    # The norm of all is estimated: against G it counts as it will in the end.
                    samples = some.samples / share
                    scores = self._scores(weights[name], some, samples, gradients[name])
                    keep = patterns[name].keep(scores, within="row")
                    weights[name].copy_(zeroed(weights[name], keep))
            for number, target in zip(numbers, targets, strict=True):
                region.set(weights)
                found = region.gradients(number, partial(_distance, target))
                processes.add_up(found)
                for linear, gradient in zip(region.linears, found, strict=True):
                    weights[linear.name].grad = gradient
                optimizer.step()
        region.set(weights)


def _distance(target: Tensor, output: Tensor) -> Tensor:
    """Return the squared distance of a block's output from what it should be."""
    mse_loss = torch.nn.functional.mse_loss
    return mse_loss(output.float(), target.to(output.device).float(), reduction="sum")


def _size(output: Tensor) -> Tensor:
    return torch.linalg.vector_norm(output.float())


def _regional_gradients(region: Region) -> dict[str, Tensor]:
    """Return by linear the root mean square over sequences of the output norm's gradient."""
    totals = [torch.zeros_like(linear.weight, dtype=torch.float32) for linear in region.linears]
    for number in range(len(region)):
        found = region.gradients(number, _size)
        for total, gradient in zip(totals, found, strict=True):
            total += gradient.square()
    processes.add_up(totals)
    return {
        linear.name: (total / region.batches).sqrt()
        for linear, total in zip(region.linears, totals, strict=True)
    }
