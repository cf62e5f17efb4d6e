"""Whatever is wanted of each layer, all of them together lose what was asked for."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.allocation.budget import balanced, weighted_mean, whole_counts

SPARSITIES = st.floats(0.01, 0.99)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    """Return what is wanted of some blocks, and their sizes."""
    number = draw(st.integers(1, 12))
    wanted = draw(st.lists(st.floats(-2, 2), min_size=number, max_size=number))
    sizes = draw(st.lists(st.integers(1, 10**9), min_size=number, max_size=number))
    return wanted, sizes


@given(blocks(), SPARSITIES, st.floats(0, 1))
def test_the_weighted_mean_is_the_sparsity_and_no_ratio_leaves_its_range(
    drawn: tuple[list[float], list[int]], sparsity: float, room: float
) -> None:
    wanted, sizes = drawn
    highest = sparsity + (1 - sparsity) * room
    found = balanced(wanted, sizes, sparsity, highest)
    assert weighted_mean(found, sizes) == pytest.approx(sparsity, abs=1e-9)
    assert all(0 <= ratio <= highest for ratio in found)


@given(blocks(), SPARSITIES)
def test_differences_stay_but_where_a_border_is_in_the_way(
    drawn: tuple[list[float], list[int]], sparsity: float
) -> None:
    wanted, sizes = drawn
    found = balanced(wanted, sizes, sparsity, highest=0.999)
    shifts = [b - a for a, b in zip(wanted, found, strict=True) if 0 < b < 0.999]
    assert shifts == pytest.approx(shifts[:1] * len(shifts), abs=1e-9)
    in_order = sorted(range(len(wanted)), key=wanted.__getitem__)
    assert [found[index] for index in in_order] == sorted(found)


SHAPES = st.lists(st.tuples(st.integers(1, 500), st.integers(8, 500)), min_size=1, max_size=20)


@given(SHAPES, st.data())
def test_rounded_to_whole_weights_the_total_is_right_to_half_a_column(
    drawn: list[tuple[int, int]], data: Any
) -> None:
    shapes = {str(number): shape for number, shape in enumerate(drawn)}
    shares = st.floats(0, 0.85).map(lambda share: round(share, 12))
    ratios = {name: data.draw(shares, label=name) for name in shapes}
    patterns = whole_counts(ratios, shapes)
    asked, removed = Decimal(0), 0
    for name, (rows, columns) in shapes.items():
        exact = Decimal(repr(ratios[name])) * columns
        count = patterns[name].removed_of(columns)
        assert abs(count - exact) < 1
        assert patterns[name].removed_of(rows * columns) == rows * count  # by row or by layer
        asked, removed = asked + rows * exact, removed + rows * count
    assert abs(removed - asked) <= Decimal(max(rows for rows, _ in drawn)) / 2


@given(st.integers(1, 500), st.floats(0, 1, exclude_max=True))
def test_no_row_is_left_without_a_weight(columns: int, ratio: float) -> None:
    shapes = dict.fromkeys("abc", (7, columns))
    patterns = whole_counts(dict.fromkeys("abc", ratio), shapes)
    assert all(patterns[name].removed_of(columns) < columns for name in "abc")


def test_a_ratio_that_is_a_whole_number_of_weights_is_kept_to_the_element() -> None:
    shapes = {"owing": (100, 10), "exact": (60, 10)}
    patterns = whole_counts({"owing": 0.34, "exact": 0.7}, shapes)
    assert (patterns["owing"].removed_of(10), patterns["exact"].removed_of(10)) == (3, 7)
