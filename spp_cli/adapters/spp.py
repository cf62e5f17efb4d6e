"""SPP: multiply the kept weights, never add to them (Lu et al. 2024, arXiv:2405.16057).

W'_ij = W_ij · (1 + scale · B_i · A_ρ(i),j), where ρ(i) = ⌊i · r / out_features⌋ is the row group of
i: zeros of W stay zero whatever A and B are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spp_cli.adapters.adapter import AdaptedLinear
from spp_cli.adapters.frozen import FrozenWeight
from spp_cli.adapters.settings import SPP

__all__ = ["SPP", "SPPLinear"]


class SPPLinear(AdaptedLinear):
    """A frozen sparse linear times 1 + scale · A_ρ ⊙ B; A is (r, in_features), B (out_features, 1).

    A starts Kaiming-uniform (a = √5), B as zero, so that training starts from the pruned model.
    Both are float32 whatever the base is.
    """

    def __init__(self, base: FrozenWeight, bias: Tensor | None, r: int, scale: float) -> None:
        super().__init__(base, bias)
        self.scale = scale
        device = base.weight().device
        groups = min(r, self.out_features)
        self.A = nn.Parameter(torch.empty(groups, self.in_features, device=device))
        self.B = nn.Parameter(torch.zeros(self.out_features, 1, device=device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def effective(self, W: Tensor, A: Tensor, B: Tensor) -> Tensor:  # type: ignore[override]
        """Return E = W ⊙ (1 + scale · A_ρ ⊙ B)."""
        rows, groups = len(W), len(A)
        if rows % groups == 0:  # the rows of a group share their row of A by broadcasting
            factor = A[:, None] * (self.scale * B).view(groups, -1, 1)
        else:
            factor = A[self._row_groups(A)] * (self.scale * B)
        W = W.view(factor.shape)
        return torch.addcmul(W, W, factor, out=factor).view(rows, -1)  # W + W ⊙ factor, at once

    def gradients(  # type: ignore[override]
        self, G: Tensor, W: Tensor, A: Tensor, B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return dA_gj = scale · Σ_{i in group g} B_i P_ij and dB_i = scale · Σ_j A_ρ(i),j P_ij.

        P = G ⊙ W.
        """
        P = G.mul_(W)
        rows, groups = len(P), len(A)
        if rows % groups == 0:
            grouped = P.view(groups, rows // groups, -1)
            dA = torch.bmm(B.view(groups, 1, -1), grouped).squeeze(1)
            # A's row on the left: with its column on the right bmm takes eight times as long.
            dB = torch.bmm(A[:, None], grouped.transpose(1, 2)).view(B.shape)
        else:
            rho = self._row_groups(A)
            dA = torch.zeros_like(A).index_add_(0, rho, P * B)
            dB = P.mul_(A[rho]).sum(dim=1, keepdim=True)
        return dA.mul_(self.scale), dB.mul_(self.scale)

    def _row_groups(self, A: Tensor) -> Tensor:
        """Return ρ: the row group of each row, (out_features,)."""
        return torch.arange(self.out_features, device=A.device) * len(A) // self.out_features
