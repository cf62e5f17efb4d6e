"""DSnoT against the released code's results, and against a plain walk row by row."""

from __future__ import annotations

import pytest
import torch
from golden_cases import case
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import moments_of

from spp_cli.pruning.statistics import Moments
from spp_cli.refining.dsnot import DSnoT
from spp_cli.sparsity.patterns import NofM, Pattern, Unstructured

CASES = [
    ("dsnot_8x128", "defaults_unstructured_50_wanda"),
    ("dsnot_8x128", "defaults_unstructured_60_wanda"),
    ("dsnot_8x128", "nm_2_4_wanda"),
    ("dsnot_16x32", "unstructured_50_wanda"),
    ("dsnot_16x32", "nm_2_4_wanda"),
    ("dsnot_16x32", "unstructured_50_wanda_thr5"),
]


def wanda_mask(weight: torch.Tensor, moments: Moments, pattern: Pattern) -> torch.Tensor:
    return pattern.keep(weight.abs() * moments.norm())


def slow(
    weight: torch.Tensor, keep: torch.Tensor, moments: Moments, pattern: Pattern, settings: DSnoT
) -> torch.Tensor:
    """One row and one swap at a time, from the description of the method."""
    keep = keep.clone()
    score = weight.abs() * moments.norm()
    contribution = weight * moments.mean()
    key = contribution / moments.variance().clamp_min(1e-12)
    for row in range(len(weight)):
        pruned = [j for j in range(weight.shape[1]) if not keep[row, j]]
        kept = [j for j in range(weight.shape[1]) if keep[row, j]]
        error = sum(contribution[row, j].item() for j in pruned)
        sign = error > 0
        for _ in range(settings.max_cycles):
            if abs(error) <= settings.update_threshold:
                break
            up = error > 0
            mending = [j for j in pruned if (key[row, j] > 0 if up else key[row, j] < 0)]
            if not mending:
                break
            grow = max(mending, key=lambda j: key[row, j].item() * (1 if up else -1))
            if isinstance(pattern, NofM):
                losers = [j for j in kept if j // pattern.of == grow // pattern.of]
            else:
                losers = [
                    j
                    for j in kept
                    if (contribution[row, j] < 0 if up else contribution[row, j] > 0)
                ]
            if not losers:
                break
            drop = min(losers, key=lambda j: score[row, j].item())
            after = error + (contribution[row, drop] - contribution[row, grow]).item()
            if isinstance(pattern, NofM) and (after > 0) != sign:
                break
            keep[row, grow], keep[row, drop] = True, False
            pruned.remove(grow)
            kept.remove(drop)
            error = after
    return keep


@pytest.mark.parametrize(("file", "name"), CASES)
def test_golden_masks_exactly(file, name):
    golden = case(file)
    found, parameters = golden["cases"][name], golden["cases"][name]["params"]
    weight, moments = torch.tensor(golden["W"]), moments_of(torch.tensor(golden["X"]))
    n_of_m = parameters["prune_n"] > 0
    pattern = NofM(2, 4) if n_of_m else Unstructured(parameters["sparsity_ratio"])
    settings = DSnoT(
        max_cycles=parameters["max_cycle_time"], update_threshold=parameters["update_threshold"]
    )
    keep = settings.refine(weight, wanda_mask(weight, moments, pattern), moments, pattern)
    assert torch.equal(keep, torch.tensor(found["W_out_guarded"]) != 0)


def test_golden_statistics():
    golden = case("dsnot_8x128")
    moments = moments_of(torch.tensor(golden["X"]))
    torch.testing.assert_close(moments.mean(), torch.tensor(golden["sum_metric_row"]))
    torch.testing.assert_close(moments.variance(), torch.tensor(golden["var"]))


def test_tokens_that_are_no_equal_share_of_each_sequence_count_as_one():
    moments = Moments(8, torch.device("cpu"))
    some, more = torch.randn(7, 8), torch.randn(5, 8)
    moments.update(some[None], samples=2)
    moments.update(more[None], samples=4)
    torch.testing.assert_close(moments.mean(), torch.cat((some, more)).sum(dim=0) / 6)
    expected = (2 * some.var(dim=0, correction=0) + 4 * more.var(dim=0, correction=0)) / 6
    torch.testing.assert_close(moments.variance(), expected)


patterns = st.sampled_from(
    [NofM(2, 4), NofM(1, 4), NofM(2, 8), Unstructured(0.5), Unstructured(0.75)]
)


@given(patterns, st.integers(1, 5), st.integers(1, 5), st.integers(1, 20), st.integers(0, 999))
def test_it_agrees_with_a_plain_walk_and_keeps_the_pattern(pattern, rows, groups, cycles, seed):
    torch.manual_seed(seed)
    weight = torch.randn(rows, 8 * groups)
    moments = moments_of(torch.randn(2, 16, 8 * groups) + torch.randn(8 * groups))
    settings = DSnoT(max_cycles=cycles)
    before = wanda_mask(weight, moments, pattern)
    keep = settings.refine(weight, before, moments, pattern)
    assert torch.equal(keep, slow(weight, before, moments, pattern, settings))
    assert torch.equal(keep.sum(dim=1), before.sum(dim=1))
    assert pattern.violations(~keep) == 0


def test_the_expected_error_of_the_output_falls():
    golden = case("dsnot_8x128")
    weight, moments = torch.tensor(golden["W"]), moments_of(torch.tensor(golden["X"]))
    before = wanda_mask(weight, moments, Unstructured(0.5))
    after = DSnoT().refine(weight, before, moments, Unstructured(0.5))

    def error(keep: torch.Tensor) -> float:
        return (weight * moments.mean()).masked_fill(keep, 0).sum(dim=1).abs().mean().item()

    assert error(after) < 0.1 * error(before)
