"""RIA against the released code's scores, and what holds whatever the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from block_cases import model_of, prune, region_of, tokens
from golden_cases import case
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spp_cli.pruning.ria import RIA, dealt_out, relative_importance
from spp_cli.pruning.statistics import InputNorm
from spp_cli.sparsity.patterns import NofM, Pattern, Unstructured

PATTERNS = st.sampled_from([Unstructured(0.3), Unstructured(0.75), NofM(2, 4), NofM(1, 8)])
WITHIN = st.sampled_from(["layer", "row"])


def inputs_of(norms: Tensor) -> InputNorm:
    """Return what is known of one token that has these norms."""
    statistic = InputNorm(len(norms), norms.device)
    statistic.update(norms.view(1, 1, -1), samples=1)
    return statistic


def keep(method: RIA, weight: Tensor, norms: Tensor, pattern: Pattern) -> Tensor:
    return method.prune(weight, method.prepare(inputs_of(norms)), pattern).keep


@pytest.mark.parametrize("within", ["layer", "row"])
def test_scores_and_masks_are_those_of_the_released_code(within: str) -> None:
    golden = case("ria_6x8")
    weight, norms = torch.tensor(golden["W"]), torch.tensor(golden["scaler_row"]).sqrt()
    expected = torch.tensor(golden["score"])
    method = RIA(power=golden["a"], within=within)
    scores = relative_importance(weight) * method.prepare(inputs_of(norms))
    torch.testing.assert_close(scores, expected)
    for pattern in (Unstructured(0.5), NofM(2, 4)):
        assert torch.equal(keep(method, weight, norms, pattern), pattern.keep(expected, within))


@given(PATTERNS, WITHIN, st.integers(0, 99))
def test_without_a_power_only_the_weights_count(pattern: Pattern, within: str, seed: int) -> None:
    torch.manual_seed(seed)
    weight, norms, others = torch.randn(5, 16), torch.rand(16), torch.rand(16)
    others[seed % 16] = 0
    method = RIA(power=0, within=within)
    first, second = (keep(method, weight, each, pattern) for each in (norms, others))
    assert torch.equal(first, second)


@given(PATTERNS, WITHIN, st.integers(-60, 60), st.integers(-12, 12), st.integers(0, 99))
def test_neither_the_scale_of_the_weights_nor_that_of_the_inputs_counts(
    pattern: Pattern, within: str, of_weights: int, of_inputs: int, seed: int
) -> None:
    """By powers of two, so that nothing is rounded; the square root of 4ⁿ is one, too."""
    torch.manual_seed(seed)
    weight, norms, method = torch.randn(5, 16), torch.rand(16), RIA(within=within)
    scaled = keep(method, weight * 2.0**of_weights, norms * 4.0**of_inputs, pattern)
    assert torch.equal(scaled, keep(method, weight, norms, pattern))


@given(WITHIN, st.integers(0, 99))
def test_rows_and_columns_of_zeros_lose_first_and_divide_nothing_by_zero(
    within: str, seed: int
) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(4, 8)
    weight[:, seed % 8] = 0
    weight[seed % 4] = 0
    scores = relative_importance(weight)
    assert scores.isfinite().all()
    assert torch.equal(scores == 0, weight == 0)
    kept = keep(RIA(within=within), weight, torch.rand(8), Unstructured(1 / 8))
    assert int((~kept).sum()) == 4
    assert not weight[~kept].count_nonzero()


def test_of_dead_inputs_the_weights_go_first_the_smallest_before_the_others() -> None:
    weight = torch.tensor([[4.0, 3.0, 1.0, 2.0]])
    norms = torch.tensor([0.0, 1.0, 1.0, 0.0])
    gone = [
        (~keep(RIA(), weight, norms, Unstructured(s)))[0].nonzero().tolist() for s in (0.25, 0.5)
    ]
    assert gone == [[[3]], [[0], [3]]]


def test_a_weight_that_is_all_its_output_has_is_spared() -> None:
    """Magnitude would empty the last row."""
    weight = torch.tensor([[9.0, 8.0, 7.0, 6.0], [8.0, 9.0, 6.0, 7.0], [0.4, 0.01, 0.01, 0.01]])
    assert keep(RIA(), weight, torch.ones(4), Unstructured(0.67))[2].tolist() == [True] + 3 * [
        False
    ]


@given(st.integers(1, 12), st.sampled_from([2, 4, 8]), st.integers(0, 99))
def test_every_group_has_one_of_each_rank_and_the_totals_are_near(
    groups: int, size: int, seed: int
) -> None:
    totals = torch.rand(groups * size, generator=torch.Generator().manual_seed(seed))
    order = dealt_out(totals, size)
    assert sorted(order.tolist()) == list(range(groups * size))
    ranks = totals.argsort(descending=True).argsort()[order].view(groups, size)
    assert (ranks // groups == torch.arange(size)).all()
    sums = totals[order].view(groups, size).sum(dim=1)
    assert sums.max() - sums.min() <= totals.max() - totals.min() + 1e-6


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "moved"),
    [
        ("llama", {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        ("mixtral", {"gate_proj", "up_proj", "down_proj"}),
        ("opt", set()),  # its layers have biases
        ("bloom", set()),
    ],
)
def test_inputs_take_another_order_where_the_block_stays_the_same(
    family: str, moved: set[str], tmp_path: Path
) -> None:
    source = model_of(family, tmp_path / "model")
    before = source.model(tokens()).logits
    region = region_of(source)
    dense = {linear.name: linear.weight.clone() for linear in region.linears}
    RIA(permute=True).see_block(region, dict.fromkeys(dense, NofM(2, 4)))
    torch.testing.assert_close(source.model(tokens()).logits, before, rtol=1e-4, atol=1e-5)
    for linear in region.linears:
        was = dense[linear.name]
        is_moved = any(linear.name.endswith(end) for end in moved)
        assert torch.equal(linear.weight, was) != is_moved
        assert torch.equal(linear.weight.flatten().sort().values, was.flatten().sort().values)


def test_attention_that_hardly_looks_at_anything_is_not_taken_for_the_same(tmp_path: Path) -> None:
    """Nearly uniform attention: another order of channels changes its outputs by some per cent."""
    source = model_of("llama", tmp_path / "model", num_key_value_heads=4, initializer_range=0.02)
    region = region_of(source)
    dense = {linear.name: linear.weight.clone() for linear in region.linears}
    RIA(permute=True).see_block(region, dict.fromkeys(dense, NofM(2, 4)))
    for linear in region.linears:
        assert torch.equal(linear.weight, dense[linear.name]) == ("self_attn" in linear.name)


def test_with_n_of_m_important_inputs_no_longer_share_a_group(tmp_path: Path) -> None:
    kept = []
    for permute in (False, True):
        source = model_of("llama", tmp_path / str(permute))
        name = "model.layers.1.mlp.down_proj"
        weight = source.model.get_submodule(name).weight.data
        weight[:, :16] *= 10
        size = weight.abs().sum()
        layer = prune(source, RIA(permute=permute), "two-pass", NofM(2, 4))[name]
        assert not NofM(2, 4).violations(layer.weight == 0)
        kept.append(layer.weight.abs().sum() / size)
    assert kept[1] > kept[0] + 0.1


def test_a_permutation_without_groups_is_refused() -> None:
    assert "Set --pattern, such as 2:4" in str(RIA(permute=True).misfit(Unstructured(0.5)))
    assert RIA(permute=True).misfit(NofM(2, 4)) is RIA().misfit(Unstructured(0.5)) is None
