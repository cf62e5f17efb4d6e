"""One small linear system for each row of a layer, on the columns that the row has chosen."""

from __future__ import annotations

from spp_cli.deferred import Tensor, torch
from spp_cli.errors import NumericalError

__all__ = ["solve_within", "solving_bytes"]

_AT_ONCE = 256 << 20  # bytes of matrices that are factorised together


def solve_within(matrix: Tensor, chosen: Tensor, wanted: Tensor) -> Tensor:
    """Return x (rows, columns), zero outside ``chosen``, with x_S · matrix_SS = wanted_S.

    S is what each row has chosen. Rows of about as many columns are solved together, by Cholesky.

    Args:
        matrix: (columns, columns), symmetric and positive definite, float32.
        chosen: (rows, columns) bool.
        wanted: (rows, columns), float32; what lies outside ``chosen`` does not matter.

    Raises:
        NumericalError: a part of ``matrix`` is not positive definite, not even in float64.
    """
    solution = torch.zeros_like(wanted)
    sizes, rows = chosen.sum(dim=1).sort(descending=True)
    counts: list[int] = sizes.tolist()
    first = 0
    while first < len(counts) and counts[first]:
        size = counts[first]
        last = first + max(1, _AT_ONCE // (4 * size * size))
        some = rows[first:last]
        # The chosen columns of each row, then others to make up the size.
        columns = (~chosen[some]).byte().argsort(dim=1, stable=True)[:, :size]
        inside = chosen[some].gather(1, columns)
        part = wanted[some].gather(1, columns).masked_fill_(~inside, 0)
        square = matrix[columns[:, :, None], columns[:, None, :]]
        if counts[min(last, len(counts)) - 1] < size:
            square.masked_fill_(~(inside[:, :, None] & inside[:, None, :]), 0)
            square.diagonal(dim1=1, dim2=2).masked_fill_(~inside, 1)
        solution[some] = solution[some].scatter(1, columns, _solve(square, part))
        first = last
    return solution


def _solve(squares: Tensor, wanted: Tensor) -> Tensor:
    """Return the solution of each system: squares (rows, size, size), wanted (rows, size)."""
    for dtype in (squares.dtype, torch.float64):
        factors, failed = torch.linalg.cholesky_ex(squares.to(dtype))
        if not failed.any():
            solved = torch.cholesky_solve(wanted.to(dtype)[..., None], factors)
            return solved[..., 0].to(wanted.dtype)
    raise NumericalError(
        "the Gram matrix of the weights that are solved for is singular, even in float64. "
        "Set a larger damping, or more samples"
    )


def solving_bytes(rows: int, columns: int) -> int:
    """Return about how many bytes ``solve_within`` takes at most, whatever is chosen."""
    return 3 * max(_AT_ONCE, 4 * columns * columns) + 8 * rows * columns
