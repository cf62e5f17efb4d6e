"""What every pruning method promises, and what the released code gives for single layers."""

from __future__ import annotations

import importlib

import pytest
import torch
from golden_cases import case, layer, pruned_cases
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.errors import NumericalError
from spp_cli.pruning import TABLE
from spp_cli.pruning.magnitude import Magnitude
from spp_cli.pruning.method import Pruned, PruningMethod
from spp_cli.pruning.sparsegpt import SparseGPT
from spp_cli.pruning.statistics import Gram, InputNorm
from spp_cli.pruning.wanda import Wanda
from spp_cli.sparsity.patterns import NofM, Pattern, Unstructured


def method_of(name: str, **settings: object) -> PruningMethod:
    module, _, attribute = TABLE[name].partition(":")
    method: PruningMethod = getattr(importlib.import_module(module), attribute)(**settings)
    return method


def prune(
    method: PruningMethod, weight: torch.Tensor, inputs: torch.Tensor, pattern: Pattern
) -> Pruned:
    """Prune one layer as the engine does; inputs are (samples, tokens, in_features)."""
    statistic = None
    if method.statistic is not None:
        statistic = method.statistic(weight.shape[1], weight.device)
        for sample in inputs:
            statistic.update(sample[None], samples=1)
    return method.prune(weight, method.prepare(statistic), pattern)


@pytest.mark.parametrize(
    ("layer_name", "key", "pattern"),
    [case for name in ("magnitude", "wanda", "sparsegpt") for case in pruned_cases(name)],
)
def test_golden_layers_masks_exactly_values_to_1e_4(layer_name, key, pattern):
    golden = layer(layer_name)
    pruned = prune(method_of(key.split("_")[0]), golden["weight"], golden["inputs"], pattern)
    assert torch.equal(pruned.keep, golden[key] != 0)
    torch.testing.assert_close(pruned.weight, golden[key], rtol=1e-4, atol=1e-5)


def test_golden_statistics():
    golden = layer("layer_48x256")
    norm, gram = InputNorm(256, torch.device("cpu")), Gram(256, torch.device("cpu"))
    for sample in golden["inputs"]:
        norm.update(sample[None], 1)
        gram.update(sample[None], 1)
    torch.testing.assert_close(golden["weight"].abs() * norm.norm(), golden["wanda_score"])
    torch.testing.assert_close(gram.hessian(), golden["sparsegpt_hessian"], rtol=1e-4, atol=1e-2)


def test_the_tiny_case_worked_by_hand():
    tiny = case("tiny_2x4")
    weight, inputs = torch.tensor(tiny["W"]), torch.tensor(tiny["X"])
    pattern = NofM(2, 4)
    for name in ("magnitude", "wanda", "sparsegpt"):
        pruned = prune(method_of(name), weight, inputs, pattern)
        expected = torch.tensor(tiny[f"{name}_2_4"])
        torch.testing.assert_close(pruned.weight, expected, rtol=1e-4, atol=1e-4)


def test_the_alpha_variant_of_wanda_agrees_with_the_released_code():
    golden = case("wanda_16x32")
    weight, inputs = torch.tensor(golden["W"]), torch.tensor(golden["X"])
    pruned = prune(Wanda(variant="alpha"), weight, inputs, Unstructured(0.5))
    torch.testing.assert_close(pruned.weight, torch.tensor(golden["variant_50"]))


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.95, 0.99])
def test_the_alpha_variant_comes_near_to_any_sparsity(sparsity):
    torch.manual_seed(0)
    weight, inputs = torch.randn(64, 256), torch.randn(1, 300, 256)
    pruned = prune(Wanda(variant="alpha"), weight, inputs, Unstructured(sparsity))
    assert (~pruned.keep).float().mean().item() == pytest.approx(sparsity, abs=1.1e-3)


def test_the_alpha_variant_leaves_a_row_alone_whose_smallest_score_is_too_large():
    weight = torch.ones(2, 4)
    weight[1] = torch.tensor([1e-3, 1e-3, 1e-3, 1.0])
    pruned = prune(Wanda(variant="alpha"), weight, torch.ones(1, 3, 4), Unstructured(0.375))
    assert pruned.keep.sum(dim=1).tolist() == [4, 1]


# Methods whose weights compete over the whole layer (those of SparseGPT, MRP and ISC: over a block,
# which has all the columns here); those of any other compete in each row.
OVER_THE_LAYER = ("magnitude", "sparsegpt", "fista", "mrp", "alps", "isc", "ria")
patterns = st.one_of(
    st.integers(1, 3).map(lambda kept: NofM(kept, 4)),
    st.sampled_from([NofM(2, 8), NofM(1, 8)]),
    st.integers(1, 9).map(lambda tenths: Unstructured(tenths / 10)),
)


@pytest.mark.parametrize("name", TABLE)
@given(patterns, st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_pruned_weights_are_zero_and_as_many_as_asked(name, pattern, rows, groups, seed):
    torch.manual_seed(seed)
    columns = 8 * groups
    weight, inputs = torch.randn(rows, columns), torch.randn(2, 40, columns)
    original = weight.clone()

    pruned = prune(method_of(name), weight, inputs, pattern)

    assert torch.equal(weight, original)  # the caller's tensor is left alone
    assert not pruned.weight[~pruned.keep].count_nonzero()
    if isinstance(pattern, NofM):
        assert (pruned.keep.view(-1, pattern.of).sum(dim=1) == pattern.kept).all()
    elif name in OVER_THE_LAYER:
        assert int((~pruned.keep).sum()) == pattern.removed_of(rows * columns)
    else:
        assert ((~pruned.keep).sum(dim=1) == pattern.removed_of(columns)).all()


@pytest.mark.parametrize("method", [Magnitude(), Wanda(), Wanda(variant="alpha")])
def test_methods_that_only_choose_leave_kept_weights_bit_for_bit(method):
    golden = layer("layer_48x256")
    pruned = prune(method, golden["weight"], golden["inputs"], Unstructured(0.6))
    assert torch.equal(pruned.weight[pruned.keep], golden["weight"][pruned.keep])


def test_wanda_lets_the_weight_decide_where_inputs_are_dead():
    weight = torch.tensor([[3.0, 1.0, 4.0, 2.0]])
    pruned = prune(Wanda(), weight, torch.zeros(1, 5, 4), Unstructured(0.5))
    assert pruned.keep.tolist() == [[True, False, True, False]]
    inputs = torch.ones(1, 5, 4)
    inputs[..., 0] = 0  # only the first input is dead: its weight goes first, however large
    pruned = prune(Wanda(), weight, inputs, Unstructured(0.25))
    assert pruned.keep.tolist() == [[False, True, True, True]]


def test_sparsegpt_compensates_better_than_its_mask_alone():
    golden = layer("layer_48x256")
    weight, inputs = golden["weight"], golden["inputs"].flatten(0, 1)
    for pattern in (Unstructured(0.5), NofM(2, 8)):
        pruned = prune(SparseGPT(), weight, golden["inputs"], pattern)
        exact = inputs @ weight.T
        repaired = (inputs @ pruned.weight.T - exact).square().sum()
        masked = (inputs @ weight.masked_fill(~pruned.keep, 0).T - exact).square().sum()
        assert repaired < 0.95 * masked
        assert pruned.record["loss"] > 0


def test_sparsegpt_gives_dead_inputs_no_weight():
    torch.manual_seed(0)
    inputs = torch.randn(1, 64, 8)
    inputs[..., 3] = 0
    pruned = prune(SparseGPT(), torch.randn(4, 8), inputs, Unstructured(0.5))
    assert not pruned.weight[:, 3].count_nonzero()
    assert pruned.weight.isfinite().all()


def test_sparsegpt_of_one_block_equals_least_squares_for_one_row():
    """With one weight removed, the update is the optimum of the damped problem, found directly."""
    torch.manual_seed(1)
    weight, inputs = torch.randn(1, 8), torch.randn(1, 200, 8)
    gram = Gram(8, torch.device("cpu"))
    gram.update(inputs[:1], 1)
    pruned = prune(SparseGPT(), weight, inputs, Unstructured(0.125))
    (gone,) = (~pruned.keep[0]).nonzero().flatten().tolist()
    H = gram.hessian().double()
    H += 0.01 * H.diagonal().mean() * torch.eye(8)
    free = list(range(gone + 1, 8))  # columns to the left are frozen when it is removed
    change = torch.linalg.solve(H[free][:, free], H[free, gone] * weight[0, gone].double())
    expected = weight[0].double().clone()
    expected[gone] = 0
    expected[free] += change
    torch.testing.assert_close(pruned.weight[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_sparsegpt_damps_more_when_the_hessian_is_singular_and_records_it():
    inputs = torch.randn(1, 400, 1).expand(-1, -1, 16).clone()  # rank one
    pruned = prune(SparseGPT(damping=1e-10), torch.randn(4, 16), inputs, Unstructured(0.5))
    assert pruned.record["damping"] > 1e-10
    assert pruned.weight.isfinite().all()


def test_sparsegpt_that_cannot_factorise_says_what_to_change():
    gram = Gram(4, torch.device("cpu"))
    gram.update(torch.eye(4)[None], 1)
    gram._total.copy_(-torch.eye(4))
    with pytest.raises(NumericalError, match=r"Set a larger damping"):
        SparseGPT().prepare(gram)


def test_what_a_method_cannot_do_is_a_misfit():
    assert "block_size is 100" in str(SparseGPT(block_size=100).misfit(NofM(2, 8)))
    assert "variant: row" in str(Wanda(variant="alpha").misfit(NofM(2, 8)))
    assert SparseGPT().misfit(NofM(2, 8)) is None
