"""SparseGPT: prune column by column, let the rest absorb the error.

Frantar & Alistarh 2023, arXiv:2301.00774.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from spp_cli.deferred import Tensor, torch
from spp_cli.pruning.factor import Factor, inverse_factor
from spp_cli.pruning.method import Pruned, PruningMethod, misfit_of_blocks
from spp_cli.pruning.statistics import Gram
from spp_cli.sparsity.patterns import NofM, Pattern

__all__ = ["SparseGPT"]

_NEAR = 32  # columns


class SparseGPT(PruningMethod):
    """Solve min ‖X Wᵀ − X W'ᵀ‖² approximately, given the pattern (Algorithm 1 of the paper)."""

    statistic: ClassVar[type] = Gram

    name: Literal["sparsegpt"] = "sparsegpt"
    block_size: int = Field(128, ge=1, description="Columns whose mask is chosen at once")
    damping: float = Field(
        0.01, gt=0, description="Added to the Hessian's diagonal, as a share of its mean"
    )

    def misfit(self, pattern: Pattern) -> str | None:
        return misfit_of_blocks(self.block_size, pattern)

    def workspace(self, rows: int, columns: int) -> int:
        return 16 * rows * columns + 20 * columns * columns  # the Hessian and its factors

    def prepare(self, statistic: Gram) -> Factor:
        """Return the upper Cholesky factor of the inverse of the damped Hessian.

        Raises:
            NumericalError: it cannot be factorised, however it is damped.
        """
        return inverse_factor(statistic.hessian(), self.damping, self.name)

    def scale(self, factor: Factor) -> Tensor:
        """Return in which units a column's weights compete with those of others: (in_features,).

        A score is the square of a weight in these units.
        """
        return factor.upper.diagonal()

    def prune(self, weight: Tensor, prepared: Factor, pattern: Pattern) -> Pruned:
        """Return the pruned and compensated weight (out_features, in_features) and its mask."""
        return self.prune_together([weight], prepared, [pattern])[0]

    def prune_together(
        self, weights: Sequence[Tensor], prepared: Factor, patterns: Sequence[Pattern]
    ) -> list[Pruned]:
        """Return ``prune`` of each layer; the rows of all are solved at once.

        For each column j: e = (w − q)/U_jj, where q is w with its pruned entries zero; then
        W_:,k −= e · U_jk for all k > j. Masks are chosen by W²/scale², which here is W²/U_jj²:
        unstructured ones for ``block_size`` columns at once; those of N:M at each group's first
        column, from the weights as they are then. The recorded loss is Σ e² / 2.

        An update reaches a few columns at once; what it does to the rest of the block, and to the
        columns behind it, waits to be done for many columns in one matrix product.
        """
        U, dead, damping = prepared
        rows = [len(weight) for weight in weights]
        # (in_features, out_features of all layers), so that a column lies in one piece
        columns = torch.cat(list(weights)).T.contiguous()
        columns[dead] = 0
        pivots, scale = U.diagonal()[:, None], self.scale(prepared)[:, None]
        keep = torch.empty_like(columns, dtype=torch.bool)
        loss = columns.new_zeros(columns.shape[1])  # a number read here would stall a GPU
        together, near = self._widths(patterns[0])
        for block in _slices(0, len(columns), self.block_size):
            errors = torch.empty_like(columns[block])
            for first in _slices(block.start, block.stop, near):
                for j in range(first.start, first.stop):
                    if (j - block.start) % together == 0:
                        chosen = slice(j, min(j + together, block.stop))
                        scores = (columns[chosen] / scale[chosen]).square_()
                        keep[chosen] = _keep(scores, rows, patterns)
                        share = (~keep[chosen]) / pivots[chosen]  # 0 for what stays
                    error = errors[j - block.start]
                    torch.mul(columns[j], share[j - chosen.start], out=error)
                    columns[j + 1 : first.stop].addr_(U[j, j + 1 : first.stop], error, alpha=-1)
                done = errors[first.start - block.start : first.stop - block.start]
                rest = slice(first.stop, block.stop)
                columns[rest].addmm_(U[first, rest].T, done, alpha=-1)
            columns[block.stop :].addmm_(U[block, block.stop :].T, errors, alpha=-1)
            loss += errors.square().sum(dim=0) / 2
        columns.masked_fill_(~keep, 0.0)
        return [
            Pruned(w.T.contiguous(), k.T.contiguous(), {"loss": e.sum().item(), "damping": damping})
            for w, k, e in zip(
                columns.split(rows, 1), keep.split(rows, 1), loss.split(rows), strict=True
            )
        ]

    def _widths(self, pattern: Pattern) -> tuple[int, int]:
        """Return for how many columns a mask is chosen at once, and how far an update reaches."""
        if not isinstance(pattern, NofM):
            return self.block_size, _NEAR
        # All that came before has reached a group when its mask is chosen.
        return pattern.of, pattern.of * max(_NEAR // pattern.of, 1)


def _keep(scores: Tensor, rows: Sequence[int], patterns: Sequence[Pattern]) -> Tensor:
    """Return the masks of some columns of each layer: (columns, out_features), side by side."""
    if isinstance(patterns[0], NofM):  # it knows no layers, and so all layers have the same
        return patterns[0].keep_of_group(scores)
    pairs = zip(scores.split(rows, dim=1), patterns, strict=True)
    return torch.cat([pattern.keep(each.T, within="layer").T for each, pattern in pairs], dim=1)


def _slices(start: int, stop: int, width: int) -> Iterator[slice]:
    for first in range(start, stop, width):
        yield slice(first, min(first + width, stop))
