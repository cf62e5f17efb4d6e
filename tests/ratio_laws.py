"""What the ratios of every allocation by a measured number have to keep to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import strategies as st

from spp_cli.allocation.budget import weighted_mean

# A number and a size of each part; the sparsity of all; half of the range of the ratios.
NUMBERS_AND_SIZES = st.lists(
    st.tuples(st.floats(0, 100), st.integers(1, 10**9)), min_size=1, max_size=80
)
SPARSITIES, WIDTHS = st.floats(0.001, 0.999), st.floats(0.001, 0.499)

Ratios = Callable[[Sequence[float], Sequence[int], float], list[float]]


def check_ratios(
    ratios: Ratios, drawn: list[tuple[float, int]], sparsity: float, width: float
) -> None:
    """The mean is the sparsity, all keep some, and the higher the number the more is kept."""
    numbers, sizes = [number for number, _ in drawn], [size for _, size in drawn]
    found = ratios(numbers, sizes, sparsity)
    assert weighted_mean(found, sizes) == pytest.approx(sparsity, abs=1e-9)
    assert all(0 <= ratio < 1 for ratio in found)
    assert max(found) - min(found) <= 2 * width + 1e-9
    order = sorted(range(len(found)), key=lambda part: -numbers[part])
    assert [found[part] for part in order] == sorted(found)
