"""SparseGPT: prune column by column, let the rest absorb the error.

Frantar & Alistarh 2023, arXiv:2301.00774.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from spp_cli.errors import NumericalError
from spp_cli.pruning.method import Pruned, PruningMethod
from spp_cli.pruning.statistics import Gram
from spp_cli.sparsity.patterns import NofM, Pattern

__all__ = ["Factor", "SparseGPT"]


class Factor(NamedTuple):
    """What layers with the same input share: U with UᵀU = H⁻¹, dead inputs, the damping used."""

    upper: Tensor  # (in_features, in_features)
    dead: Tensor  # (in_features,) bool
    damping: float


class SparseGPT(PruningMethod):
    """Solve min ‖X Wᵀ − X W'ᵀ‖² approximately, given the pattern (Algorithm 1 of the paper)."""

    statistic: ClassVar[type] = Gram

    name: Literal["sparsegpt"] = "sparsegpt"
    block_size: int = Field(128, ge=1, description="Columns whose mask is chosen at once")
    damping: float = Field(
        0.01, gt=0, description="Added to the Hessian's diagonal, as a share of its mean"
    )

    def misfit(self, pattern: Pattern) -> str | None:
        if isinstance(pattern, NofM) and self.block_size % pattern.of:
            return (
                f"block_size is {self.block_size}; must be a multiple of {pattern.of} for {pattern}"
            )
        return None

    def prepare(self, statistic: Gram) -> Factor:
        """Return the upper Cholesky factor of the inverse of the damped Hessian.

        A Hessian that cannot be factorised is damped ten times more, three times at most, then
        tried in float64; the damping that worked is in the result.

        Raises:
            NumericalError: nothing of this helped.
        """
        H = statistic.hessian()
        diagonal = H.diagonal()
        dead = diagonal == 0
        diagonal[dead] = 1
        mean = diagonal.mean()
        for exponent, dtype in (
            (0, H.dtype),
            (1, H.dtype),
            (2, H.dtype),
            (3, H.dtype),
            (3, torch.float64),
        ):
            damping = self.damping * 10**exponent
            damped = H.to(dtype, copy=True)
            damped.diagonal().add_(damping * mean)
            upper = _upper_factor_of_inverse(damped)
            if upper is not None:
                return Factor(upper.float(), dead, damping)
        raise NumericalError(
            f"the Hessian cannot be factorised, not even with damping {damping:g} in float64. "
            "Set a larger damping (method: {name: sparsegpt, damping: 0.1}) or more samples"
        )

    def prune(self, weight: Tensor, prepared: Factor, pattern: Pattern) -> Pruned:
        """Return the pruned and compensated weight (out_features, in_features) and its mask.

        For each column j: e = (w − q)/U_jj, where q is w with its pruned entries zero; then
        W_:,k −= e · U_jk for all k > j. Unstructured masks are chosen for ``block_size`` columns at
        once by W²/U_jj²; those of N:M at each group's first column, from the weights as they are
        then. The recorded loss is Σ e² / 2.
        """
        U, dead, damping = prepared
        columns = weight.T.clone(
            memory_format=torch.contiguous_format
        )  # (in_features, out_features): a column lies in one piece
        columns[dead] = 0
        keep = torch.ones_like(columns, dtype=torch.bool)
        group = pattern.of if isinstance(pattern, NofM) else self.block_size
        loss = weight.new_zeros(())  # stays on the device: a number read here would stall a GPU
        for start in range(0, len(columns), self.block_size):
            end = min(start + self.block_size, len(columns))
            errors = torch.empty_like(columns[start:end])
            for j in range(start, end):
                if (j - start) % group == 0:
                    chosen = slice(j, min(j + group, end))
                    scores = (columns[chosen] / U.diagonal()[chosen, None]).square()
                    keep[chosen] = pattern.keep(scores.T, within="layer").T
                kept = columns[j].masked_fill(~keep[j], 0.0)
                error = (columns[j] - kept) / U[j, j]
                columns[j:end] -= torch.outer(U[j, j:end], error)
                columns[j] = kept
                errors[j - start] = error
            columns[end:] -= U[start:end, end:].T @ errors
            loss += errors.square().sum() / 2
        record = {"loss": loss.item(), "damping": damping}
        return Pruned(columns.T.contiguous(), keep.T.contiguous(), record)


def _upper_factor_of_inverse(H: Tensor) -> Tensor | None:
    """Return U, upper triangular, with UᵀU = H⁻¹; None if H is not positive definite enough."""
    lower, failed = torch.linalg.cholesky_ex(H)
    if failed:
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if failed or not upper.isfinite().all() else upper
