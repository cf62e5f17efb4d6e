"""FISTA against the LASSO's optimum, and the search for λ against what it begins with."""

from __future__ import annotations

import pytest
import torch
from golden_cases import case
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import PATTERNS, a_layer, gram_of, prune, squared_error

from spp_cli.pruning.fista import Fista, _largest_eigenvalue, lasso
from spp_cli.pruning.reconstruction import Reconstruction
from spp_cli.pruning.sparsegpt import SparseGPT
from spp_cli.pruning.statistics import Gram
from spp_cli.pruning.wanda import Wanda
from spp_cli.sparsity.patterns import NofM, Unstructured

STARTS = {
    "wanda": lambda: prune_of(Wanda()),
    "sparsegpt": lambda: prune_of(SparseGPT()),
    "dense": lambda: (
        lambda weight, inputs, pattern: weight.masked_fill(
            ~pattern.keep(weight.abs(), within="layer"), 0
        )
    ),
}


def prune_of(method):
    def pruned(weight, inputs, pattern):
        return method.prune(weight, method.prepare(gram_of(inputs)), pattern).weight

    return pruned


def golden() -> tuple[dict[str, torch.Tensor], Reconstruction, torch.Tensor]:
    """Return the tensors of the golden case, its problem and G; the statistic has twice XᵀX."""
    loaded = case("fista_6x16")
    tensors = {
        key: torch.tensor(value) for key, value in loaded.items() if not isinstance(value, str)
    }
    gram = gram_of(tensors["X_pruned"][None], tensors["X_dense"][None])
    hessian = gram.hessian()
    return tensors, Reconstruction(tensors["W"], gram, hessian), hessian


@pytest.mark.parametrize(
    ("iterations", "key"), [(20, "W_after_20_iters"), (3000, "W_lasso_optimum")]
)
def test_fista_follows_the_published_steps_to_the_optimum_of_the_lasso(iterations, key):
    tensors, problem, hessian = golden()
    penalty, largest = tensors["lam"].item(), tensors["L"].item()
    found = lasso(hessian / 2, problem.targets() / 2, tensors["W"], penalty, largest, iterations)
    torch.testing.assert_close(found, tensors[key], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(("pattern", "suffix"), [(Unstructured(0.5), "50"), (NofM(2, 4), "2_4")])
def test_both_errors_of_a_rounded_solution_come_from_gram_matrices_alone(pattern, suffix):
    tensors, problem, _ = golden()
    solution = tensors["W_after_20_iters"]
    keep = pattern.keep(solution.abs(), within="layer")
    rounded = solution.masked_fill(~keep, 0)
    name = "rounded_exact_50" if suffix == "50" else "rounded_2_4"
    torch.testing.assert_close(rounded, tensors[name])
    total = (problem.error(rounded) / 2).sqrt()
    lost = (problem.distance(rounded, solution) / 2).sqrt()
    torch.testing.assert_close(total, tensors[f"E_total_{suffix}"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lost, tensors[f"E_round_{suffix}"], rtol=1e-4, atol=1e-4)


@given(st.integers(1, 40), st.integers(0, 99))
def test_the_largest_eigenvalue_is_found_within_two_per_cent(size, seed):
    _, inputs = a_layer(seed, columns=size)
    hessian = gram_of(inputs).hessian()
    largest = torch.linalg.eigvalsh(hessian.double())[-1].item()
    assert 0.99 * largest <= _largest_eigenvalue(hessian) <= 1.021 * largest


@pytest.mark.parametrize("start", STARTS)
@given(st.sampled_from(PATTERNS), st.integers(0, 99))
def test_the_error_is_never_above_that_of_the_rounded_start(start, pattern, seed):
    weight, inputs = a_layer(seed)
    begun = STARTS[start]()(weight, inputs, pattern)
    begun = begun.masked_fill(~pattern.keep(begun.abs(), within="layer"), 0)
    pruned = prune(Fista(start=start), weight, pattern, inputs)
    before, after = (squared_error(each, weight, inputs) for each in (begun, pruned.weight))
    assert after <= before * (1 + 1e-4)
    assert pruned.record["error"] == pytest.approx((after / before) ** 0.5, rel=1e-2)


@given(st.sampled_from(PATTERNS), st.integers(0, 99), st.integers(-8, 8))
def test_larger_inputs_change_nothing(pattern, seed, exponent):
    weight, inputs = a_layer(seed)
    one, other = (prune(Fista(), weight, pattern, x) for x in (inputs, inputs * 2.0**exponent))
    torch.testing.assert_close(one.weight, other.weight)
    assert torch.equal(one.keep, other.keep)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_outputs_of_the_dense_block_are_met_better_if_it_is_known_what_it_gives(pattern):
    weight, dense = a_layer(0, rows=32, columns=64, tokens=400)
    inputs = dense @ (torch.eye(64) + 0.05 * torch.randn(64, 64))
    corrected = prune(Fista(), weight, pattern, inputs, dense)
    alone = prune(Fista(), weight, pattern, inputs)
    assert squared_error(corrected.weight, weight, inputs, dense) < squared_error(
        alone.weight, weight, inputs, dense
    )


@pytest.mark.parametrize("start", STARTS)
def test_it_improves_on_every_start_where_inputs_resemble_each_other(start):
    weight, inputs = a_layer(1, rows=32, columns=64, tokens=400)
    pruned = prune(Fista(start=start), weight, Unstructured(0.5), inputs)
    assert pruned.record["error"] < 0.97
    assert 1 <= pruned.record["rounds"] <= 10


@pytest.mark.parametrize("start", STARTS)
def test_dead_inputs_and_few_tokens_leave_finite_weights_of_the_pattern(start):
    weight, inputs = a_layer(2, tokens=5)
    inputs[..., 3] = 0
    pruned = prune(Fista(start=start), weight, NofM(2, 4), inputs)
    assert pruned.weight.isfinite().all()
    silent = prune(Fista(start=start), weight, NofM(2, 4), torch.zeros_like(inputs))
    assert (silent.keep.view(-1, 4).sum(dim=1) == 2).all()
    assert silent.weight.isfinite().all()


def test_a_gram_matrix_of_one_way_of_inputs_will_do():
    weight, inputs = a_layer(3)
    gram = Gram(16, torch.device("cpu"))
    gram.update(inputs, 1)
    method = Fista()
    pruned = method.prune(weight, method.prepare(gram), NofM(2, 4))
    assert torch.equal(pruned.weight, prune(method, weight, NofM(2, 4), inputs, inputs).weight)


@pytest.mark.parametrize("pattern", [NofM(3, 6), NofM(12, 24)], ids=str)
def test_a_start_from_sparsegpt_keeps_groups_whole_that_do_not_divide_128(pattern):
    weight, inputs = a_layer(5, rows=8, columns=192, tokens=600)
    method = Fista(start="sparsegpt")
    start = method._start(weight, method.prepare(gram_of(inputs)), pattern)
    assert not pattern.violations(start == 0)


def test_inputs_brought_to_one_norm_are_not_drowned_by_a_few_large_ones():
    weight, inputs = a_layer(6, rows=32, columns=64, tokens=400)
    inputs[..., :2] *= 30
    errors = [
        squared_error(
            prune(Fista(normalize=n), weight, Unstructured(0.5), inputs).weight, weight, inputs
        )
        for n in (False, True)
    ]
    assert errors[1] < 0.75 * errors[0]


@pytest.mark.parametrize("start", STARTS)
@given(st.sampled_from(PATTERNS), st.integers(0, 99))
def test_what_may_stay_is_not_zero(start, pattern, seed):
    """Where the penalty leaves fewer weights of a group than the pattern, the rest are fitted."""
    weight, inputs = a_layer(seed)
    pruned = prune(Fista(start=start), weight, pattern, inputs)
    assert torch.equal(pruned.weight != 0, pruned.keep)
