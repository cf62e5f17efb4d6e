"""Multiplicative low rank: W' = W ⊙ (1 + scale · B A), the rival nearest to SPP.

HiRA (Huang et al. 2025, "Parameter-Efficient Hadamard High-Rank Adaptation") on a sparse weight:
zeros of W stay zero whatever A and B are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spp_cli.adapters.low_rank import LowRankLinear
from spp_cli.adapters.settings import Multiplicative

__all__ = ["Multiplicative", "MultiplicativeLinear"]


class MultiplicativeLinear(LowRankLinear):
    """A frozen sparse linear times 1 + scale · B A."""

    def effective(self, W: Tensor, A: Tensor, B: Tensor) -> Tensor:  # type: ignore[override]
        """Return E = W ⊙ (1 + scale · B A)."""
        factor = (self.scale * B) @ A
        return torch.addcmul(W, W, factor, out=factor)  # W + W ⊙ factor, at once

    def gradients(  # type: ignore[override]
        self, G: Tensor, W: Tensor, A: Tensor, B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return scale · Bᵀ (G ⊙ W) and scale · (G ⊙ W) Aᵀ."""
        return self.of_product(G.mul_(W), A, B)
