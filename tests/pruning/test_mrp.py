"""MRP against a direct solve, and against all masks there are."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from golden_cases import case
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import PATTERNS, a_layer, gram_of, prune, squared_error

from spp_cli.pruning.mrp import MRP
from spp_cli.sparsity.patterns import NofM, Unstructured


def damped(inputs: torch.Tensor) -> torch.Tensor:
    """Return the Hessian that MRP solves with, in float64."""
    H = gram_of(inputs).hessian().double()
    return H + 0.01 * H.diagonal().mean() * torch.eye(len(H))


def cost(weight: torch.Tensor, pruned: torch.Tensor, H: torch.Tensor) -> float:
    change = (pruned - weight).double()
    return float(((change @ H) * change).sum() / 2)


def optimum(row: torch.Tensor, gone: list[int], H: torch.Tensor) -> torch.Tensor:
    """Return the row with its weights ``gone`` removed and all others free, solved directly."""
    free = [j for j in range(len(row)) if j not in gone]
    found = torch.zeros_like(row, dtype=torch.float64)
    found[free] = torch.linalg.solve(H[free][:, free], (H @ row.double())[free])
    return found


@pytest.mark.parametrize(("mask", "letter"), [("multiple", "M"), ("single", "S")])
def test_golden_masks_and_updates(mask, letter):
    golden = case("mrp_2x8")
    weight, inputs = torch.tensor(golden["W"]), torch.tensor(golden["X"])[None]
    pruned = prune(MRP(mask=mask), weight, NofM(2, 4), inputs)
    gone = torch.tensor(golden[f"mask_{letter}_2_4_pruned"]).bool()
    assert torch.equal(pruned.keep, ~gone)
    expected = torch.tensor(golden[f"W_out_mask_{letter}_update_M"])
    torch.testing.assert_close(pruned.weight, expected, rtol=1e-4, atol=1e-4)
    assert pruned.record["loss"] == pytest.approx(golden[f"loss_{letter}M"], rel=1e-4)


@given(st.integers(0, 99), st.integers(1, 3))
def test_of_one_group_it_finds_the_best_of_all_masks_and_weights(seed, kept):
    weight, inputs = a_layer(seed, columns=4)
    H = damped(inputs)
    best = sum(
        min(cost(row, optimum(row, list(gone), H), H) for gone in combinations(range(4), 4 - kept))
        for row in weight
    )
    pruned = prune(MRP(), weight, NofM(kept, 4), inputs)
    assert cost(weight, pruned.weight, H) == pytest.approx(best, rel=1e-3)
    assert pruned.record["loss"] == pytest.approx(best, rel=1e-3)


@given(st.sampled_from(PATTERNS), st.integers(0, 99))
def test_within_one_block_all_others_make_up_as_well_as_they_can(pattern, seed):
    weight, inputs = a_layer(seed)
    H = damped(inputs)
    pruned = prune(MRP(), weight, pattern, inputs)
    for row, keep, found in zip(weight, pruned.keep, pruned.weight, strict=True):
        expected = optimum(row, (~keep).nonzero().flatten().tolist(), H)
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


@given(st.sampled_from(PATTERNS), st.integers(0, 99))
def test_removing_at_once_costs_no_more_than_removing_one_by_one(pattern, seed):
    weight, inputs = a_layer(seed)
    H = damped(inputs)
    at_once, one_by_one = (
        prune(MRP(mask="single", update=update), weight, pattern, inputs)
        for update in ("multiple", "single")
    )
    assert torch.equal(at_once.keep, one_by_one.keep)
    costs = [cost(weight, each.weight, H) for each in (at_once, one_by_one)]
    assert costs[0] <= costs[1] * (1 + 1e-4)
    recorded = [each.record["loss"] for each in (at_once, one_by_one)]
    assert recorded == pytest.approx(costs, rel=1e-3)


def test_later_blocks_leave_earlier_ones_alone_and_each_loses_its_share():
    weight, inputs = a_layer(4, columns=32, tokens=300)
    method = MRP(block_size=8)
    pruned = prune(method, weight, Unstructured(0.5), inputs)
    assert (~pruned.keep).view(6, 4, 8).sum(dim=(0, 2)).tolist() == [24] * 4
    # What the first block becomes depends on no later one: only its own weights go here.
    first = prune(MRP(block_size=32), weight, NofM(31, 32), inputs)
    assert first.keep.sum() == 6 * 31
    masked = weight.masked_fill(~pruned.keep, 0)
    assert squared_error(pruned.weight, weight, inputs) < squared_error(masked, weight, inputs)
    assert cost(weight, pruned.weight, damped(inputs)) == pytest.approx(
        pruned.record["loss"], rel=1e-3
    )


@given(st.sampled_from(PATTERNS), st.integers(0, 99), st.integers(-8, 8))
def test_larger_inputs_change_nothing(pattern, seed, exponent):
    weight, inputs = a_layer(seed)
    one, other = (prune(MRP(), weight, pattern, x) for x in (inputs, inputs * 2.0**exponent))
    assert torch.equal(one.weight, other.weight)


def test_dead_inputs_get_no_weight_and_few_tokens_are_enough():
    weight, inputs = a_layer(5, tokens=5)
    inputs[..., 3] = 0
    pruned = prune(MRP(), weight, NofM(3, 4), inputs)
    assert not pruned.weight[:, 3].count_nonzero()
    assert pruned.weight.isfinite().all()


def test_what_it_cannot_do_is_a_misfit():
    assert MRP().misfit(NofM(8, 16)) is None  # auto: by single removals
    assert MRP().misfit(Unstructured(0.5)) is None
    assert "12870 sets" in str(MRP(mask="multiple").misfit(NofM(8, 16)))
    assert "only N:M has groups" in str(MRP(mask="multiple").misfit(Unstructured(0.5)))
    assert "block_size is 100" in str(MRP(block_size=100).misfit(NofM(2, 8)))
