"""SPP: multiply the kept weights, never add to them (Lu et al. 2024, arXiv:2405.16057).

W'_ij = W_ij · (1 + scale · B_i · A_ρ(i),j), where ρ(i) = ⌊i · r / out_features⌋ is the row group of
i: zeros of W stay zero whatever A and B are.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from spp_cli.adapters.adapter import AdaptedLinear, AdapterMethod

__all__ = ["SPP", "SPPLinear"]


class SPP(AdapterMethod):
    """Settings of SPP. The released ones: 16 row groups, scale 2."""

    name: Literal["spp"] = "spp"
    r: int = Field(16, ge=1, description="Row groups that each have a row of A of their own")
    scale: float = Field(2.0, gt=0, description="Factor of the product of A and B")

    def wrap(self, weight: Tensor, bias: Tensor | None) -> SPPLinear:
        return SPPLinear(weight, bias, self.r, self.scale)


class SPPLinear(AdaptedLinear):
    """A frozen sparse linear times 1 + scale · A_ρ ⊙ B; A is (r, in_features), B (out_features, 1).

    A starts Kaiming-uniform (a = √5), B as zero, so that training starts from the pruned model.
    Both are float32 whatever the base is.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, r: int, scale: float) -> None:
        super().__init__(weight, bias)
        out_features, in_features = weight.shape
        self.scale = scale
        groups = min(r, out_features)
        self.A = nn.Parameter(torch.empty(groups, in_features, device=weight.device))
        self.B = nn.Parameter(torch.zeros(out_features, 1, device=weight.device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return X Eᵀ + bias for hidden_states X (..., in_features), E the effective weight."""
        device = hidden_states.device.type
        if torch.is_autocast_enabled(device):
            hidden_states = hidden_states.to(torch.get_autocast_dtype(device))
        output: Tensor = _Product.apply(hidden_states, self.weight, self.A, self.B, self.scale)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def effective_weight(self, weight: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            W = self.weight if weight is None else weight.to(self.A.device)
            return _effective(W.float(), self.A, self.B, self.scale)


def _effective(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """Return E = W ⊙ (1 + scale · A_ρ ⊙ B), (out_features, in_features), in the type of A."""
    rows, groups = len(W), len(A)
    if rows % groups == 0:  # the rows of a group share their row of A by broadcasting
        factor = A[:, None] * (scale * B).view(groups, -1, 1)
        return factor.add_(1).mul_(W.view(factor.shape)).view(W.shape)
    return (A[_row_groups(rows, groups, A.device)] * (scale * B)).add_(1).mul_(W)


def _gradients(P: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Return dA_gj = Σ_{i in group g} B_i P_ij and dB_i = Σ_j A_ρ(i),j P_ij."""
    rows, groups = len(P), len(A)
    if rows % groups == 0:
        grouped = P.view(groups, rows // groups, -1)
        dA = torch.bmm(B.view(groups, 1, -1), grouped).squeeze(1)
        return dA, torch.bmm(grouped, A[:, :, None]).view(B.shape)
    rho = _row_groups(rows, groups, A.device)
    return torch.zeros_like(A).index_add_(0, rho, P * B), (P * A[rho]).sum(dim=1, keepdim=True)


def _row_groups(rows: int, groups: int, device: torch.device) -> Tensor:
    """Return ρ: the row group of each row, (rows,)."""
    return torch.arange(rows, device=device) * groups // rows


class _Product(torch.autograd.Function):
    """Y = X Eᵀ with three matrix products in all, and only X saved beside the parameters.

    Autograd on the plain formula would keep E and its factors for each layer. Here E is rebuilt:

        dX = dY E,  P = scale · (dYᵀ X) ⊙ W,
        dA_gj = Σ_{i in group g} B_i P_ij,  dB_i = Σ_j A_ρ(i),j P_ij.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(X, W, A, B)
        ctx.scale = scale
        return linear(X, _effective(W, A, B, scale).to(X.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dY,) = gradients
        X, W, A, B = ctx.saved_tensors
        dX = dA = dB = None
        if ctx.needs_input_grad[0]:
            dX = dY @ _effective(W, A, B, ctx.scale).to(dY.dtype)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            P = (dY.flatten(0, -2).T @ X.flatten(0, -2)).to(A.dtype).mul_(W).mul_(ctx.scale)
            dA, dB = _gradients(P, A, B)
        return dX, None, dA, dB, None
