"""While an adapter trains: is every pruned weight still zero, and the base still the same?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spp_cli import processes
from spp_cli.adapters.adapter import AdaptedLinear
from spp_cli.adapters.attach import adapted_layers
from spp_cli.errors import CheckFailed, NumericalError, SppError
from spp_cli.sparsity.masks import KeepMasks, unpack

__all__ = ["GENTLER", "MaskCheck"]

GENTLER = "Lower finetune.learning_rate, or raise finetune.warmup_ratio"
_A_BUG = "This is a mistake in the adapter, not in what you asked; nothing was published"


class MaskCheck:
    """Holds the adapted layers of ``blocks`` to ``masks`` and to the weights that they have now.

    ``path`` is where the blocks are in the model: with it a layer's name is that of its mask.
    """

    def __init__(self, blocks: Sequence[nn.Module], path: str, masks: KeepMasks) -> None:
        self.digest = masks.digest
        self._masks = masks
        self._blocks = [
            (block, {f"{path}.{index}.{name}": layer for name, layer in layers.items()})
            for index, block in enumerate(blocks)
            if (layers := adapted_layers(block))
        ]
        self._sums = {
            name: _bit_sum(layer.weight)
            for _, layers in self._blocks
            for name, layer in layers.items()
        }

    def run(self, step: int) -> None:
        """Check all layers; those of a block that the processes share, each checks its share of.

        Raises:
            CheckFailed: a pruned weight is not zero as the layer computes with it, or a weight of
                the base has changed; the same in every process.
            NumericalError: a weight that the layer computes with is NaN or infinite.
        """
        found: SppError | None = None
        for block, layers in self._blocks:
            with _unsharded(block) as is_sharded:
                every = processes.count() if is_sharded else 1
                for name, layer in list(layers.items())[processes.number() % every :: every]:
                    found = found or self._problem(name, layer, f"at step {step}")
        if problem := next(filter(None, processes.collect(found)), None):
            raise problem

    @torch.no_grad()
    def _problem(self, name: str, layer: AdaptedLinear, when: str) -> SppError | None:
        if _bit_sum(layer.weight) != self._sums[name]:
            return CheckFailed(f"finetune: the base weight of {name} has changed {when}. {_A_BUG}")
        effective = layer.effective_weight()
        if not effective.isfinite().all():
            return NumericalError(f"finetune: {name} has weights of nan or inf {when}. {GENTLER}")
        if not layer.keeps_zeros:
            return None  # nor does it promise to: the merge applies the mask again
        packed = self._masks.packed(name).to(effective.device)
        keep = unpack(packed, self._masks.shapes[name])
        if filled := int(effective.masked_fill(keep, 0).count_nonzero()):
            text = f"finetune: {filled} pruned weights of {name} are not zero {when}"
            return CheckFailed(f"{text}. {_A_BUG}")
        return None


def _bit_sum(weight: Tensor) -> int:
    """Return the sum of the weights' bits as whole numbers: exact in any order, on any device."""
    whole_number = {2: torch.int16, 4: torch.int32}[weight.element_size()]
    return int(weight.detach().view(whole_number).sum(dtype=torch.int64))


@contextmanager
def _unsharded(block: Any) -> Iterator[bool]:
    """Have all of a block's parameters in this process; tell if FSDP gave each only a part."""
    is_sharded = hasattr(block, "unshard")
    if is_sharded:
        block.unshard()
    try:
        yield is_sharded
    finally:
        if is_sharded:
            block.reshard()
