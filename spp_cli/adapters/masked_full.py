"""Masked full finetuning: every kept weight trains, every pruned one stays zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spp_cli.adapters.adapter import AdaptedLinear
from spp_cli.adapters.frozen import FrozenWeight
from spp_cli.adapters.settings import MaskedFull

__all__ = ["MaskedFull", "MaskedFullLinear"]


class MaskedFullLinear(AdaptedLinear):
    """A frozen sparse linear plus a change (kept,) of each kept weight, in row order, float32."""

    def __init__(self, base: FrozenWeight, bias: Tensor | None) -> None:
        super().__init__(base, bias)
        keep = base.keep()
        self.change = nn.Parameter(torch.zeros(int(keep.count_nonzero()), device=keep.device))

    def effective(self, W: Tensor, change: Tensor) -> Tensor:  # type: ignore[override]
        """Return E = W + the change of each kept weight at its place."""
        update = torch.zeros(W.shape, dtype=change.dtype, device=change.device)
        return update.masked_scatter_(self.base.keep(), change).add_(W)

    def gradients(  # type: ignore[override]
        self, G: Tensor, W: Tensor, change: Tensor
    ) -> tuple[Tensor]:
        """Return G where weights are kept."""
        return (G[self.base.keep()],)
