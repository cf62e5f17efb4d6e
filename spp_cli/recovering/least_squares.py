"""Least squares: the weights that stay, fitted to the outputs of the dense layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from spp_cli.pruning.method import Pruned
from spp_cli.pruning.reconstruction import Reconstruction
from spp_cli.pruning.statistics import Gram
from spp_cli.pruning.subsets import solve_within, solving_bytes
from spp_cli.recovering.recovery import Recovery

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LeastSquares"]


class LeastSquares(Recovery):
    """Solve min ‖X W'ᵀ − X Wᵀ‖² for the kept weights of each row, exactly.

    The damping holds W' to the weights as they were, not to zero: so the error cannot grow.
    """

    statistic: ClassVar[type] = Gram

    name: Literal["least-squares"] = "least-squares"
    damping: float = Field(
        0.01, gt=0, description="Added to the Gram matrix's diagonal, as a share of its mean"
    )

    def recover(self, weight: Tensor, pruned: Pruned, statistic: Gram) -> Pruned:
        """Return the fitted weights: with S the support, (W' − W'₀)_S (G + dI)_SS = (B − W'₀ G)_S.

        G is XᵀX and B is W G; where the statistic knows the inputs Y of the dense block, W YᵀX. A
        row that rounding made worse stays as it was. The record has in ``recovered`` the share of
        the squared error that is gone.

        Raises:
            NumericalError: the Gram matrix is singular; more damping helps.
        """
        hessian = statistic.hessian()
        problem = Reconstruction(weight, statistic, hessian)
        residual = problem.residual(pruned.weight)
        damped = hessian.clone()
        diagonal = damped.diagonal()
        diagonal += self.damping * (diagonal.mean() or 1.0)
        change = solve_within(damped, pruned.keep, residual)
        gained = (change * (2 * residual - change @ hessian)).sum(dim=1, keepdim=True)
        change.masked_fill_(~(gained > 0), 0.0)
        before = problem.error(pruned.weight).clamp_min(0)
        share = (gained.clamp_min(0).sum() / before).nan_to_num(0.0, posinf=0.0).item()
        fitted = pruned.weight + change
        return Pruned(fitted, pruned.keep, {**pruned.record, "recovered": share})

    def workspace(self, rows: int, columns: int) -> int:
        return 24 * rows * columns + 12 * columns * columns + solving_bytes(rows, columns)
