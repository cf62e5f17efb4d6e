"""Ratios that keep to a budget: their mean, weighted by size, is the sparsity asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal

from spp_cli.sparsity.patterns import Unstructured

__all__ = ["balanced", "highest_ratio", "weighted_mean", "whole_counts"]

_FEWEST = 0.1  # of the share that stays overall: a block that lost all would cut the model in two


def weighted_mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the mean of ``values``, each counted as often as its size says."""
    pairs = zip(values, sizes, strict=True)
    return math.fsum(value * size for value, size in pairs) / sum(sizes)


def highest_ratio(sparsity: float) -> float:
    """Return the most that a layer may lose where ``sparsity`` goes overall; below 1."""
    return min(1 - _FEWEST * (1 - sparsity), math.nextafter(1.0, 0.0))


def balanced(
    wanted: Sequence[float], sizes: Sequence[int], sparsity: float, highest: float
) -> list[float]:
    """Return ``wanted``, all shifted by one number, whose weighted mean is ``sparsity``.

    What the shift would take out of [0, ``highest``] stays at the border, and the others make up
    for it. ``sparsity`` lies within.
    """

    def shifted(shift: float) -> list[float]:
        return [min(max(value + shift, 0.0), highest) for value in wanted]

    shift = sparsity - weighted_mean(wanted, sizes)
    if min(wanted) + shift >= 0 and max(wanted) + shift <= highest:
        return shifted(shift)
    # The mean grows with the shift: halve the bracket until no number lies between its ends.
    low, high = -max(wanted), highest - min(wanted)
    while low < (shift := (low + high) / 2) < high:
        if weighted_mean(shifted(shift), sizes) < sparsity:
            low = shift
        else:
            high = shift
    return shifted(high)


def whole_counts(
    ratios: Mapping[str, float], shapes: Mapping[str, tuple[int, int]]
) -> dict[str, Unstructured]:
    """Return, for each name, the pattern of a whole number of weights a row, next to its ratio.

    Rounding down in every layer would leave the model denser than asked by half a weight a row.
    Here what one layer loses too little, the next may lose more, so that over all ``shapes`` (rows,
    columns) at most half a column of the tallest layer is missing or too much.
    """
    patterns = {}
    missing = Decimal(0)  # weights that should have gone from the layers so far, and have not
    for name in sorted(ratios, key=lambda name: -shapes[name][0]):
        rows, columns = shapes[name]
        exact = Decimal(repr(ratios[name])) * columns
        count = int(exact)
        missing += rows * (exact - count)
        if exact > count and count + 1 < columns and abs(missing - rows) < abs(missing):
            count += 1
            missing -= rows
        patterns[name] = _removing(count, columns)
    return patterns


def _removing(count: int, columns: int) -> Unstructured:
    """Return the pattern by which ``count`` of every ``columns`` go, to the element."""
    share = count / columns
    while Unstructured(share).removed_of(columns) < count:  # 1/3 of 3 is 0.9999999999999999
        share = math.nextafter(share, 1.0)
    return Unstructured(share)
