"""Plain LoRA (Hu et al. 2021, arXiv:2106.09685): W' = W + scale · B A, which fills every zero.

Here to show the loss: a merge has to apply the mask again, and that throws away what the update put
on pruned weights. To keep sparsity, train spp or masked-lora.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import linear

from spp_cli.adapters.low_rank import LowRankLinear
from spp_cli.adapters.settings import LoRA

__all__ = ["LoRA", "LoRALinear"]


class LoRALinear(LowRankLinear):
    """A frozen sparse linear plus scale · B A."""

    keeps_zeros: ClassVar[bool] = False

    def effective(self, W: Tensor, A: Tensor, B: Tensor) -> Tensor:  # type: ignore[override]
        """Return E = W + scale · B A."""
        return ((self.scale * B) @ A).add_(W)

    def product(self, X: Tensor) -> Tensor:
        """Return X Wᵀ + scale · (X Aᵀ) Bᵀ: cheaper than by E, since no mask is between B and A."""
        W = self.base.weight().to(X.dtype)
        A, B = self.A.to(X.dtype), self.B.to(X.dtype)
        return linear(X, W) + linear(linear(X, A), B) * self.scale
