"""What adapters with a low-rank product B A have in common."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spp_cli.adapters.adapter import AdaptedLinear
from spp_cli.adapters.frozen import FrozenWeight
from spp_cli.adapters.settings import LowRank

__all__ = ["LowRank", "LowRankLinear"]


class LowRankLinear(AdaptedLinear):
    """A frozen sparse linear with A (r, in_features), Kaiming-uniform, and B (out_features, r), 0.

    Both are float32 whatever the base is.
    """

    def __init__(self, base: FrozenWeight, bias: Tensor | None, settings: LowRank) -> None:
        super().__init__(base, bias)
        self.scale = settings.scale
        device = base.weight().device
        rank = min(settings.r, self.in_features, self.out_features)
        self.A = nn.Parameter(torch.empty(rank, self.in_features, device=device))
        self.B = nn.Parameter(torch.zeros(self.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def of_product(self, G: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of A and B from that of scale · B A."""
        scaled = self.scale * B
        return scaled.T @ G, (G @ A.T).mul_(self.scale)
