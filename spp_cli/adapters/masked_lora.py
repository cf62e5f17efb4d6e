"""Masked LoRA: a low-rank update of the kept weights alone, W' = W + scale · M ⊙ (B A).

LoRA (Hu et al. 2021, arXiv:2106.09685) under the keep mask M.
"""

from __future__ import annotations

from torch import Tensor

from spp_cli.adapters.low_rank import LowRankLinear
from spp_cli.adapters.settings import MaskedLoRA

__all__ = ["MaskedLoRA", "MaskedLoRALinear"]


class MaskedLoRALinear(LowRankLinear):
    """A frozen sparse linear plus scale · M ⊙ (B A)."""

    def effective(self, W: Tensor, A: Tensor, B: Tensor) -> Tensor:  # type: ignore[override]
        """Return E = W + scale · M ⊙ (B A)."""
        update = (self.scale * B) @ A
        return update.masked_fill_(~self.base.keep(), 0).add_(W)

    def gradients(  # type: ignore[override]
        self, G: Tensor, W: Tensor, A: Tensor, B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return scale · Bᵀ (M ⊙ G) and scale · (M ⊙ G) Aᵀ."""
        return self.of_product(G.masked_fill_(~self.base.keep(), 0), A, B)
