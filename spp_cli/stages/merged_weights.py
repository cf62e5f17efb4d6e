"""The merged weights: pruned weight and adapter in float32, rounded once, and what that costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spp_cli.adapters.attach import adapted_layers
from spp_cli.config import SppConfig
from spp_cli.errors import CheckFailed
from spp_cli.models.rounding import refuse_unstorable, stochastic
from spp_cli.progress import Reporter
from spp_cli.stages.sparse_model import SparseModel

__all__ = ["MUCH", "MergedWeights", "RoundingCost", "merge_weights"]

MUCH = 0.1  # of the update's norm: above it auto no longer rounds to the nearest, and a merge warns


@dataclass
class RoundingCost:
    """Sums over the kept weights of all merged layers; the update is what the adapter adds."""

    kept: int = 0
    unchanged: int = 0
    to_zero: int = 0
    update: float = 0.0  # squared norm
    error: float = 0.0  # squared norm of what rounding adds to the update
    product: float = 0.0  # of the update and what became of it

    def count(self, base: Tensor, exact: Tensor, merged: Tensor, keep: Tensor) -> None:
        """Count in one layer: (out, in) each, before the adapter, with it, and as it is stored."""
        stored = merged.float()
        update, error = exact - base, stored - exact
        self.kept += int(keep.sum())
        self.unchanged += int((keep & (stored == base)).sum())
        self.to_zero += int((keep & (base != 0) & (stored == 0)).sum())
        self.update += _dot(update, update)
        self.error += _dot(error, error)
        self.product += _dot(update, stored - base)

    @property
    def error_share(self) -> float:
        """The norm of the error over that of the update; 0 if there is none."""
        return (self.error / self.update) ** 0.5 if self.update else 0.0

    @property
    def update_kept(self) -> float:
        """How much of the update is left in its own direction: 1 if all, 0 if none."""
        return self.product / self.update if self.update else 1.0

    def described(self) -> dict[str, Any]:
        """Return the shares, for the manifest."""
        return {
            "kept_weights_unchanged": self.unchanged / self.kept if self.kept else 0.0,
            "error_of_update": self.error_share,
            "update_kept": self.update_kept,
        }


@dataclass
class MergedWeights:
    """Weights by name in the layout and type they are stored in, and what became of the update."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    cost: RoundingCost = field(default_factory=RoundingCost)
    layers: Counter[str] = field(default_factory=Counter)  # how many were rounded how
    refused: float = 0.0  # squared norm of what the mask took from the update
    changed: float = 0.0  # and of what it took from

    @property
    def lost_to_the_mask(self) -> float:
        return self.refused / self.changed if self.changed else 0.0

    def rounded(self) -> str:
        """Return "nearest", or "stochastic in 12 of 28 layers"."""
        if len(self.layers) < 2:
            return "".join(self.layers)
        return f"stochastic in {self.layers['stochastic']} of {self.layers.total()} layers"


def merge_weights(
    config: SppConfig, sparse: SparseModel, dtype: torch.dtype | None, reporter: Reporter
) -> MergedWeights:
    """Return the merged weights; from here on the model of ``sparse`` computes with them.

    They are to be stored in ``dtype`` (None: that of the pruned model).

    Raises:
        CheckFailed: a pruned weight would be filled, or a merged one is NaN or infinite.
        ModelError: a merged weight overflows in ``dtype``.
    """
    result = MergedWeights()
    layers = adapted_layers(sparse.model)
    with reporter.task("merge", len(layers), "linears") as progress:
        for name, layer in layers.items():
            linear, keep = sparse.linears[name], sparse.masks[name]
            base = linear.as_stored(sparse.stored.read(f"{name}.weight"))
            exact = layer.effective_weight(base).cpu()
            base = base.float()
            if not layer.keeps_zeros:
                change = exact - base
                result.changed += change.square().sum().item()
                result.refused += change.masked_fill_(keep, 0).square().sum().item()
                exact.masked_fill_(~keep, 0)
            as_type = sparse.stored.dtype(f"{name}.weight", dtype)
            merged, how = _rounded(config, name, base, exact, as_type)
            _refuse_damage(name, exact, merged, keep)
            result.layers[how] += 1
            result.cost.count(base, exact, merged, keep)
            result.weights[f"{name}.weight"] = linear.as_stored(merged).contiguous()
            layer.set_weight(merged)
            progress.advance(1, name)
    return result


def _rounded(
    config: SppConfig, name: str, base: Tensor, exact: Tensor, dtype: torch.dtype
) -> tuple[Tensor, str]:
    """Return a weight in ``dtype``, and how it was rounded."""
    rounding, near = config.merge.rounding, exact.to(dtype)
    if rounding == "auto":
        error, update = (torch.linalg.vector_norm(each - exact) for each in (near.float(), base))
        rounding = "stochastic" if error > MUCH * update else "nearest"
    if rounding == "nearest":
        return near, rounding
    return stochastic(exact, dtype, seed=config.seed, name=name), rounding


def _refuse_damage(name: str, exact: Tensor, merged: Tensor, keep: Tensor) -> None:
    if not exact.isfinite().all():  # first: NaN and infinity count as filled, too
        raise CheckFailed(
            f"merge makes NaN or infinity in {name}. Nothing was saved. "
            "Finetune again with a lower finetune.learning_rate"
        )
    refuse_unstorable(f"merge: {name}", exact, merged, "merge.dtype")
    filled = int((merged.masked_fill(keep, 0) != 0).sum())
    if filled:
        raise CheckFailed(
            f"merge would fill {filled} of {int((~keep).sum())} pruned weights in {name}. "
            "Nothing was saved. The adapter breaks its promise to keep zeros"
        )


def _dot(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum(dtype=torch.float64))
