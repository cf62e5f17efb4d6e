"""Sparsity patterns: rules that turn scores into a keep mask, True where a weight stays.

N:M always means N kept of every M consecutive inputs; the released Wanda and SparseGPT code counts
the removed ones instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from spp_cli.config import parse_n_of_m
from spp_cli.deferred import Tensor, torch
from spp_cli.errors import ConfigError

__all__ = ["NofM", "Pattern", "Unstructured", "parse_pattern"]

_COMPARE_UP_TO = 32  # columns
_LONG, _SAMPLE = 1 << 16, 1 << 14  # columns
_AT_ONCE = 1 << 16  # rows


@dataclass(frozen=True)
class Unstructured:
    """A share ``sparsity`` of the weights goes, wherever they are."""

    sparsity: float

    def keep(self, scores: Tensor, within: Literal["row", "layer"] = "row") -> Tensor:
        """Return the keep mask of ``scores`` (rows, columns); the highest scores stay.

        Exactly ⌊size · sparsity⌋ go in each row, or in the whole layer. Of equal scores the
        leftmost (in the layer: the first in row order) goes first, on every device.
        """
        groups = scores if within == "row" else scores.reshape(1, -1)
        count = self.removed_of(groups.shape[1])
        return _drop_lowest(groups, count).view(scores.shape)

    def removed_of(self, size: int) -> int:
        """Return ⌊size · sparsity⌋, with sparsity taken as the decimal number that was written.

        In binary 100 · 0.29 is 28.999999999999996.
        """
        return int(Decimal(repr(self.sparsity)) * size)

    def violations(self, zeros: Tensor) -> int:
        """Return 0: there is no place where an unstructured weight may not be."""
        return 0

    def misfit(self, in_features: int) -> str | None:
        """Return None: every width will do."""
        return None

    def __str__(self) -> str:
        return f"unstructured {self.sparsity:g}"


@dataclass(frozen=True)
class NofM:
    """``kept`` weights stay in every ``of`` consecutive inputs of a row."""

    kept: int
    of: int

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / self.of

    def keep(self, scores: Tensor, within: Literal["row", "layer"] = "row") -> Tensor:
        """Return the keep mask of ``scores`` (rows, columns); ``within`` changes nothing here."""
        groups = scores.reshape(-1, self.of)
        return _drop_lowest(groups, self.of - self.kept).view(scores.shape)

    def keep_of_group(self, scores: Tensor) -> Tensor:
        """Return the keep mask of one group in many rows, each a column of scores: (of, rows)."""
        if self.of <= _COMPARE_UP_TO:
            return _above(scores, self.of - self.kept)
        return _drop_lowest(scores.T, self.of - self.kept).T

    def violations(self, zeros: Tensor) -> int:
        """Return how many groups hold more than ``kept`` non-zeros; zeros: (rows, columns) bool."""
        filled = (~zeros).reshape(-1, self.of).sum(dim=1)
        return int((filled > self.kept).sum())

    def misfit(self, in_features: int) -> str | None:
        """Return why the pattern does not fit a row of ``in_features`` weights; None if it does."""
        if in_features % self.of == 0:
            return None
        fitting = [m for m in (2, 4, 8, 16, 32) if in_features % m == 0]
        remedy = f"Choose M from {', '.join(map(str, fitting))}, or" if fitting else "You can"
        return (
            f"has {in_features} inputs, not a multiple of {self.of}. "
            f"{remedy} exclude it with prune.exclude"
        )

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"


Pattern = Unstructured | NofM


def parse_pattern(pattern: str, sparsity: float | None = None) -> Pattern:
    """Return the pattern that ``prune.pattern`` and ``prune.sparsity`` describe.

    Raises:
        ConfigError: neither "unstructured" with a sparsity nor N:M with 0 < N < M.
    """
    if pattern == "unstructured" and sparsity is not None:
        return Unstructured(sparsity)
    parsed = parse_n_of_m(pattern)
    if parsed is None:
        raise ConfigError(
            f"pattern is {pattern!r}; must be N:M with 0 < N < M, for example 2:4 (2 of 4 stay)"
        )
    return NofM(*parsed)


def _drop_lowest(scores: Tensor, count: int) -> Tensor:
    """Return True for all but the ``count`` lowest of each row; of equals the leftmost goes."""
    size = scores.shape[1]
    if not count:
        return torch.ones_like(scores, dtype=torch.bool)
    if size <= _COMPARE_UP_TO:
        return _drop_lowest_of_short(scores, count)
    # Selecting the highest that goes takes a fraction of the time of sorting them all.
    if len(scores) == 1 and size >= _LONG:
        highest = _kth_of_long_row(scores, count)
    else:
        highest = scores.kthvalue(count, dim=1, keepdim=True).values
    keep = scores > highest
    # Of a single row: to count all is far quicker than to add up along an axis.
    kept = keep.count_nonzero().view(1) if len(keep) == 1 else keep.sum(dim=1)
    if bool((kept == size - count).all()):
        return keep
    equal = scores == highest
    stay = size - count - kept[:, None]
    return keep | (equal & (equal.sum(dim=1, keepdim=True) - equal.cumsum(dim=1) < stay))


def _kth_of_long_row(row: Tensor, count: int) -> Tensor:
    """Return the ``count``-th lowest of ``row`` (1, size), looked for where a sample has it."""
    sample = row[0, :: row.shape[1] // _SAMPLE].sort().values
    place, around = count * len(sample) // row.shape[1], 4 * math.isqrt(len(sample))
    low, high = sample[max(place - around, 0)], sample[min(place + around, len(sample) - 1)]
    below = row < low
    rank = count - int(below.count_nonzero())
    near = row[below.logical_xor_(row <= high)]
    if 1 <= rank <= len(near):
        return near.kthvalue(rank, keepdim=True).values.view(1, 1)
    return row.kthvalue(count, dim=1, keepdim=True).values


def _drop_lowest_of_short(scores: Tensor, count: int) -> Tensor:
    """Return ``_drop_lowest`` of rows of up to 32: on a CPU as many at once as its cache holds."""
    keep = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    at_once = _AT_ONCE if scores.device.type == "cpu" else len(scores)
    for part, result in zip(scores.split(at_once), keep.split(at_once), strict=True):
        result.copy_(_above(part.T.contiguous(), count).T)
    return keep


def _above(columns: Tensor, count: int) -> Tensor:
    """Return ``_drop_lowest`` of short rows (size, rows): each pair is compared, nothing sorted."""
    ranks = torch.zeros(columns.shape, dtype=torch.int8, device=columns.device)
    for right in range(1, len(columns)):
        # One comparison for all on the left of it: of equals the left one ranks lower.
        above = columns[right] >= columns[:right]
        ranks[right] += above.sum(dim=0, dtype=torch.int8)
        ranks[:right] += ~above
    return ranks >= count
