"""Patterns turn scores into keep masks, exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spp_cli.errors import ConfigError
from spp_cli.sparsity.patterns import NofM, Unstructured, _drop_lowest, parse_pattern

ratios = st.integers(1, 99).map(lambda percent: percent / 100)
seeds = st.integers(0, 2**16)


def scores_of(rows: int, columns: int, seed: int, levels: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if levels:  # many ties
        return torch.randint(levels, (rows, columns), generator=generator).float()
    return torch.rand(rows, columns, generator=generator)


@given(ratios, st.integers(1, 5), st.integers(1, 60), seeds, st.sampled_from([None, 2]))
def test_each_row_loses_exactly_the_share_asked_for(sparsity, rows, columns, seed, levels):
    keep = Unstructured(sparsity).keep(scores_of(rows, columns, seed, levels))
    asked = int(Fraction(str(sparsity)) * columns)
    assert ((~keep).sum(dim=1) == asked).all()


@given(ratios, st.integers(1, 5), st.integers(1, 60), seeds, st.sampled_from([None, 2]))
def test_a_layer_loses_exactly_the_share_asked_for(sparsity, rows, columns, seed, levels):
    keep = Unstructured(sparsity).keep(scores_of(rows, columns, seed, levels), within="layer")
    assert int((~keep).sum()) == int(Fraction(str(sparsity)) * rows * columns)


@given(ratios, st.integers(1, 5), st.integers(1, 60), seeds)
def test_what_stays_never_scores_lower_than_what_goes(sparsity, rows, columns, seed):
    scores = scores_of(rows, columns, seed, levels=4)
    keep = Unstructured(sparsity).keep(scores)
    for row, kept in zip(scores, keep, strict=True):
        if kept.any() and not kept.all():
            assert row[kept].min() >= row[~kept].max()


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.integers(1, 6), seeds)
def test_n_of_m_means_n_kept_of_every_m(kept, extra, rows, groups, seed):
    pattern = NofM(kept, kept + extra)
    keep = pattern.keep(scores_of(rows, groups * pattern.of, seed, levels=3))
    assert (keep.view(rows, groups, pattern.of).sum(dim=2) == kept).all()
    assert pattern.violations(~keep) == 0


@given(st.integers(1, 3), seeds)
def test_rows_are_judged_alone(rows, seed):
    scores = scores_of(rows, 16, seed)
    for pattern in (NofM(2, 8), Unstructured(0.6)):
        assert (pattern.keep(scores)[-1:] == pattern.keep(scores[-1:])).all()


@given(
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2, 7, 32, 33, 100, (1 << 16) - 1, 1 << 16, 100_003]),
    st.floats(0, 1),
    st.sampled_from([None, 1, 2, 50]),
    seeds,
)
@settings(deadline=None)
def test_what_goes_is_what_a_stable_sort_puts_first(rows, columns, share, levels, seed):
    scores = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    if levels:
        scores = (scores * levels).floor()  # many are equal
    count = int(share * columns)
    first = scores.sort(dim=1, stable=True).indices[:, :count]
    expected = torch.ones_like(scores, dtype=torch.bool).scatter_(1, first, False)
    assert torch.equal(_drop_lowest(scores, count), expected)


def test_of_equal_scores_the_leftmost_goes():
    assert Unstructured(0.5).keep(torch.ones(1, 4)).tolist() == [[False, False, True, True]]


def test_a_ratio_is_the_decimal_number_that_was_written():
    assert int(100 * 0.29) == 28  # what binary floating point makes of it
    assert Unstructured(0.29).removed_of(100) == 29


def test_violations_count_the_groups_that_hold_too_many():
    zeros = torch.tensor([[1, 1, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]).bool()
    assert NofM(2, 4).violations(zeros) == 2


def test_a_width_that_m_does_not_divide_is_a_misfit_with_a_way_out():
    problem = NofM(2, 6).misfit(64)
    assert problem is not None
    assert "64 inputs, not a multiple of 6. Choose M from 2, 4, 8, 16, 32" in problem
    assert NofM(2, 4).misfit(64) is None
    assert Unstructured(0.3).misfit(7) is None


@pytest.mark.parametrize("text", ["4:2", "2:2", "0:4", "2", "two:four", ""])
def test_what_is_not_a_pattern_is_refused(text):
    with pytest.raises(ConfigError, match="must be N:M with 0 < N < M"):
        parse_pattern(text)


def test_patterns_read_as_they_are_written():
    assert parse_pattern("2:8") == NofM(2, 8)
    assert parse_pattern("2:8").sparsity == 0.75
    assert parse_pattern("unstructured", 0.5) == Unstructured(0.5)
    assert str(parse_pattern("2:8")) == "2:8"


@given(st.integers(1, 3), st.sampled_from([1, 5, 40]), st.integers(1, 6), seeds)
def test_a_group_in_a_column_is_judged_as_one_in_a_row(kept, extra, rows, seed):
    pattern = NofM(kept, kept + extra)
    scores = scores_of(rows, pattern.of, seed, levels=3)
    assert torch.equal(pattern.keep_of_group(scores.T), pattern.keep(scores).T)
