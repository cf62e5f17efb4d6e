"""MRP: weights are removed many at a time, and all others make up for all of them at once.

Zhao et al. 2024, Pruning Foundation Models for High Accuracy without Retraining, arXiv:2410.15567.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import ClassVar, Literal

from pydantic import Field

from spp_cli.deferred import Tensor, torch
from spp_cli.pruning.factor import Factor, inverse_factor
from spp_cli.pruning.method import Pruned, PruningMethod, misfit_of_blocks
from spp_cli.pruning.statistics import Gram
from spp_cli.pruning.subsets import solve_within, solving_bytes
from spp_cli.sparsity.patterns import NofM, Pattern

__all__ = ["MRP"]

_MOST_SETS = 100  # of a group, that are weighed against each other; 4:8 has 70


class MRP(PruningMethod):
    """Solve the multiple removal problem, one block of columns after the other.

    With C = H⁻¹ and P the weights of a row w that go, the row changes by −w_P (C_PP)⁻¹ C_P:, at a
    cost of ½ w_P (C_PP)⁻¹ w_Pᵀ: the optimum of min ½ d H dᵀ with (w + d)_P = 0. Columns of earlier
    blocks are frozen, so that C is the inverse of what follows them; ``recover: least-squares``
    sets them free again.
    """

    statistic: ClassVar[type] = Gram

    name: Literal["mrp"] = "mrp"
    mask: Literal["auto", "single", "multiple"] = Field(
        "auto",
        description="How a mask is chosen (the paper's S and M). single: each weight by what its "
        "removal alone costs; multiple: each group of N:M by what every set of it costs together; "
        "auto: multiple for N:M of up to 100 sets (4:8 has 70), else single",
    )
    update: Literal["multiple", "single"] = Field(
        "multiple",
        description="How the others make up for it (the paper's M and S). multiple: for all of a "
        "block at once; single: column by column, as SparseGPT does",
    )
    block_size: int = Field(128, ge=1, description="Columns that are pruned at once")
    damping: float = Field(
        0.01, gt=0, description="Added to the Hessian's diagonal, as a share of its mean"
    )

    def misfit(self, pattern: Pattern) -> str | None:
        if not isinstance(pattern, NofM):
            if self.mask == "multiple":
                return "mask multiple weighs the sets of a group, and only N:M has groups. Use auto"
            return None
        if problem := misfit_of_blocks(self.block_size, pattern):
            return problem
        if self.mask == "multiple" and _sets(pattern) > _MOST_SETS:
            return (
                f"mask multiple would weigh {_sets(pattern)} sets of each group of {pattern}, more "
                f"than {_MOST_SETS}. Use mask: single"
            )
        return None

    def workspace(self, rows: int, columns: int) -> int:
        inside = min(self.block_size, columns)
        weighed = 16 * rows * inside * _MOST_SETS // 8
        return (
            12 * rows * columns + 20 * columns * columns + max(weighed, solving_bytes(rows, inside))
        )

    def prepare(self, statistic: Gram) -> Factor:
        """Return the upper Cholesky factor of the inverse of the damped Hessian.

        Raises:
            NumericalError: it cannot be factorised, however it is damped.
        """
        return inverse_factor(statistic.hessian(), self.damping, self.name)

    def prune(self, weight: Tensor, prepared: Factor, pattern: Pattern) -> Pruned:
        """Return the pruned and compensated weight (out_features, in_features) and its mask.

        With U the part of the factor that belongs to the columns from the block on, C is UᵀU, and
        an update is −E times the rows of U that are the block's. The recorded loss is Σ E² / 2.
        """
        U, dead, damping = prepared
        left = weight.masked_fill(dead, 0.0)
        keep = torch.ones_like(left, dtype=torch.bool)
        loss = left.new_zeros(())
        for start in range(0, left.shape[1], self.block_size):
            block = slice(start, start + self.block_size)
            near = U[block, block]
            inverse = near.T @ near
            keep[:, block] = self._keep(left[:, block], inverse, pattern)
            gone = ~keep[:, block]
            if self.update == "multiple":
                errors = solve_within(inverse, gone, left[:, block]) @ near.T
            else:
                errors = _one_by_one(left[:, block], gone, near)
            loss += errors.square().sum() / 2
            left[:, start:] -= errors @ U[block, start:]
            left[:, block].masked_fill_(gone, 0.0)
        return Pruned(left, keep, {"loss": loss.item(), "damping": damping})

    def _keep(self, weight: Tensor, inverse: Tensor, pattern: Pattern) -> Tensor:
        """Return the mask of one block: weight (out_features, width), inverse (width, width)."""
        joint = self.mask != "single"
        if isinstance(pattern, NofM) and joint and _sets(pattern) <= _MOST_SETS:
            return _keep_by_sets(weight, inverse, pattern)
        return pattern.keep(weight.square() / inverse.diagonal(), within="layer")


def _sets(pattern: NofM) -> int:
    """Return how many sets of weights may stay in a group."""
    return math.comb(pattern.of, pattern.kept)


def _keep_by_sets(weight: Tensor, inverse: Tensor, pattern: NofM) -> Tensor:
    """Return the mask that removes of each group the set P with the least ½ w_P (C_PP)⁻¹ w_Pᵀ."""
    size = pattern.of
    sets = torch.tensor(
        list(combinations(range(size), size - pattern.kept)), device=weight.device
    )  # (sets, removed)
    groups = torch.arange(0, weight.shape[1], size, device=weight.device)
    columns = groups[:, None, None] + sets  # (groups, sets, removed)
    solved = torch.linalg.inv(inverse[columns[..., :, None], columns[..., None, :]])
    forms = weight.new_zeros(len(groups), len(sets), size, size)
    pairs = torch.arange(len(sets), device=weight.device)[:, None, None]
    forms[:, pairs, sets[:, :, None], sets[:, None, :]] = solved
    grouped = weight.view(len(weight), -1, size)
    products = (grouped[..., :, None] * grouped[..., None, :]).flatten(2)  # (rows, groups, size²)
    costs = torch.einsum("rgp,gsp->rgs", products, forms.flatten(2))
    removes = torch.zeros(len(sets), size, dtype=torch.bool, device=weight.device)
    removes.scatter_(1, sets, True)
    return ~removes[costs.argmin(dim=2)].view(weight.shape)


def _one_by_one(weight: Tensor, gone: Tensor, near: Tensor) -> Tensor:
    """Return E of SparseGPT's update, in which each column makes up for those on its left."""
    weight, errors = weight.clone(), torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        errors[:, j] = weight[:, j].masked_fill(~gone[:, j], 0.0) / near[j, j]
        weight[:, j:] -= errors[:, j, None] * near[j, j:]
    return errors
