"""Least squares on a support against a plain solver, whatever chose the support."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import PATTERNS, a_layer, gram_of, moments_of, prune, squared_error

from spp_cli.errors import NumericalError
from spp_cli.pruning import subsets
from spp_cli.pruning.fista import Fista
from spp_cli.pruning.magnitude import Magnitude
from spp_cli.pruning.method import Pruned
from spp_cli.pruning.sparsegpt import SparseGPT
from spp_cli.pruning.subsets import solve_within
from spp_cli.pruning.wanda import Wanda
from spp_cli.recovering.least_squares import LeastSquares
from spp_cli.refining.dsnot import DSnoT
from spp_cli.sparsity.patterns import NofM, Unstructured


@pytest.fixture(params=[1, 256 << 20], ids=["row by row", "all rows at once"])
def at_once(request, monkeypatch):
    monkeypatch.setattr(subsets, "_AT_ONCE", request.param)


def test_each_row_is_solved_on_what_it_has_chosen(at_once):
    _, inputs = a_layer(0)
    matrix = gram_of(inputs).hessian()
    wanted = torch.randn(9, 16)
    chosen = torch.rand(9, 16) < torch.linspace(0, 1, 9)[:, None]  # none in the first row
    found = solve_within(matrix, chosen, wanted)
    assert not found[~chosen].count_nonzero()
    for row in range(9):
        S = chosen[row]
        expected = torch.linalg.solve(matrix[S][:, S], wanted[row, S])
        torch.testing.assert_close(found[row, S], expected, rtol=1e-3, atol=1e-5)


def test_a_matrix_that_is_not_definite_is_an_error_that_says_what_to_do():
    with pytest.raises(NumericalError, match="Set a larger damping"):
        solve_within(-torch.eye(4), torch.ones(1, 4).bool(), torch.ones(1, 4))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_without_damping_it_is_the_least_squares_solution(pattern):
    weight, inputs = a_layer(1)
    pruned = prune_by(Magnitude(), weight, pattern, inputs)
    fitted = LeastSquares(damping=1e-9).recover(weight, pruned, gram_of(inputs)).weight
    X = inputs[0].double()
    for row, keep, found in zip(weight, pruned.keep, fitted, strict=True):
        expected = torch.linalg.lstsq(X[:, keep], X @ row.double()).solution
        torch.testing.assert_close(found[keep].double(), expected, rtol=1e-3, atol=1e-4)


def prune_by(method, weight, pattern, inputs, dense=None) -> Pruned:
    if method.statistic is None:
        return method.prune(weight, None, pattern)
    return prune(method, weight, pattern, inputs, dense)


def dsnot(weight, pattern, inputs) -> Pruned:
    pruned = prune_by(Wanda(), weight, pattern, inputs)
    return DSnoT(update_threshold=0).apply(weight, pruned, moments_of(inputs), pattern)


BEFORE = {
    "magnitude": lambda *layer: prune_by(Magnitude(), *layer),
    "wanda": lambda *layer: prune_by(Wanda(), *layer),
    "sparsegpt": lambda *layer: prune_by(SparseGPT(), *layer),
    "fista": lambda *layer: prune_by(Fista(), *layer),
    "dsnot": dsnot,
}


@pytest.mark.parametrize("before", BEFORE)
@given(st.sampled_from(PATTERNS), st.integers(0, 99), st.sampled_from([1e-6, 0.01, 10.0]))
def test_after_any_method_the_error_does_not_grow_and_the_mask_holds(
    before, pattern, seed, damping
):
    weight, inputs = a_layer(seed)
    pruned = BEFORE[before](weight, pattern, inputs)
    fitted = LeastSquares(damping=damping).recover(weight, pruned, gram_of(inputs))
    assert torch.equal(fitted.keep, pruned.keep)
    assert not fitted.weight[~fitted.keep].count_nonzero()
    earlier, later = (squared_error(each.weight, weight, inputs) for each in (pruned, fitted))
    assert later <= earlier * (1 + 1e-5) + 1e-9
    assert fitted.record["recovered"] == pytest.approx(1 - later / earlier, abs=1e-3)


@given(st.integers(0, 99), st.integers(-8, 8))
def test_larger_inputs_change_nothing(seed, exponent):
    weight, inputs = a_layer(seed)
    pruned = prune_by(Wanda(), weight, NofM(2, 4), inputs)
    one, other = (
        LeastSquares().recover(weight, pruned, gram_of(x)).weight
        for x in (inputs, inputs * 2.0**exponent)
    )
    assert torch.equal(one, other)


def test_outputs_of_the_dense_block_are_what_is_fitted_where_they_are_known():
    weight, dense = a_layer(2, tokens=300)
    inputs = dense @ (torch.eye(16) + 0.1 * torch.randn(16, 16))
    pruned = prune_by(Wanda(), weight, Unstructured(0.5), inputs)
    fitted = LeastSquares(damping=1e-9).recover(weight, pruned, gram_of(inputs, dense)).weight
    X, Y = inputs[0].double(), dense[0].double()
    for row, keep, found in zip(weight, pruned.keep, fitted, strict=True):
        expected = torch.linalg.lstsq(X[:, keep], Y @ row.double()).solution
        torch.testing.assert_close(found[keep].double(), expected, rtol=1e-3, atol=1e-4)


def test_fewer_tokens_than_weights_and_dead_inputs_leave_finite_weights():
    weight, inputs = a_layer(3, tokens=3)
    inputs[..., 5] = 0
    pruned = prune_by(Magnitude(), weight, NofM(3, 4), inputs)
    fitted = LeastSquares().recover(weight, pruned, gram_of(inputs)).weight
    assert fitted.isfinite().all()
    assert torch.equal(fitted[:, 5], pruned.weight[:, 5])  # nothing is known of it
    silent = LeastSquares().recover(weight, pruned, gram_of(torch.zeros_like(inputs)))
    assert torch.equal(silent.weight, pruned.weight)
