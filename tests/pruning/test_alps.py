"""ALPS against the best mask where that is known, and against what it begins with."""

from __future__ import annotations

import pytest
import torch
from golden_cases import layer
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import PATTERNS, a_layer, gram_of, prune, squared_error

from spp_cli.pruning.alps import ALPS, _fit
from spp_cli.pruning.magnitude import Magnitude
from spp_cli.pruning.sparsegpt import SparseGPT
from spp_cli.pruning.wanda import Wanda
from spp_cli.sparsity.patterns import NofM, Unstructured


@given(st.sampled_from(PATTERNS), st.integers(0, 99))
def test_of_inputs_that_have_nothing_in_common_it_keeps_what_counts_most(pattern, seed):
    weight, _ = a_layer(seed)
    sizes = torch.rand(16, generator=torch.Generator().manual_seed(seed)) + 0.5
    inputs = torch.diag(sizes)[None]  # each token is one input
    pruned = prune(ALPS(damping=1e-6), weight, pattern, inputs)
    # The squared error of a mask is the sum of w² ‖x‖² over what it drops: no mask has less.
    assert torch.equal(pruned.keep, pattern.keep((weight * sizes).abs(), within="layer"))
    torch.testing.assert_close(pruned.weight[pruned.keep], weight[pruned.keep])


@given(st.sampled_from(PATTERNS), st.integers(0, 99))
def test_the_damped_error_is_never_above_that_of_what_it_begins_with(pattern, seed):
    weight, inputs = a_layer(seed)
    method = ALPS()
    spectrum = method.prepare(gram_of(inputs))
    dense = weight * spectrum.scale
    begun = dense.masked_fill(~pattern.keep(dense.abs(), within="layer"), 0)
    found = method.prune(weight, spectrum, pattern).weight * spectrum.scale
    before, after = (
        float(((each - dense) @ spectrum.hessian * (each - dense)).sum()) for each in (begun, found)
    )
    assert after <= before * (1 + 1e-5)


@given(st.sampled_from(PATTERNS), st.integers(0, 99))
def test_the_kept_weights_are_near_the_optimum_of_their_support(pattern, seed):
    weight, inputs = a_layer(seed)
    method = ALPS(refinements=100)
    spectrum = method.prepare(gram_of(inputs))
    pruned = method.prune(weight, spectrum, pattern)
    dense, found = weight * spectrum.scale, pruned.weight * spectrum.scale
    for row, keep, fitted in zip(dense, pruned.keep, found, strict=True):
        H = spectrum.hessian.double()
        expected = torch.linalg.solve(H[keep][:, keep], (H @ row.double())[keep])
        torch.testing.assert_close(fitted[keep].double(), expected, rtol=1e-2, atol=1e-2)


@given(st.integers(0, 99), st.integers(0, 10))
def test_conjugate_gradients_never_raise_the_error(seed, iterations):
    weight, inputs = a_layer(seed)
    hessian = gram_of(inputs).hessian()
    keep = NofM(2, 4).keep(weight.abs())
    begun = weight.masked_fill(~keep, 0)
    fitted = _fit(hessian, weight @ hessian, keep, begun, iterations)
    assert not fitted[~keep].count_nonzero()
    before, after = (squared_error(each, weight, inputs) for each in (begun, fitted))
    assert after <= before * (1 + 1e-5)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_layer_comes_out_better_than_with_methods_that_choose_once(pattern):
    golden = layer("layer_48x256")
    weight, inputs = golden["weight"], golden["inputs"]
    errors = [
        squared_error(prune(method, weight, pattern, inputs).weight, weight, inputs)
        for method in (ALPS(), SparseGPT(), Wanda(), Magnitude())
    ]
    assert errors == sorted(errors)


@given(st.sampled_from(PATTERNS), st.integers(0, 99), st.integers(-4, 4))
def test_larger_inputs_change_nothing(pattern, seed, exponent):
    weight, inputs = a_layer(seed)
    one, other = (prune(ALPS(), weight, pattern, x) for x in (inputs, inputs * 4.0**exponent))
    assert torch.equal(one.weight, other.weight)


def test_dead_inputs_get_no_weight_and_few_tokens_are_enough():
    weight, inputs = a_layer(6, tokens=5)
    inputs[..., 3] = 0
    pruned = prune(ALPS(), weight, NofM(3, 4), inputs)
    assert not pruned.weight[:, 3].count_nonzero()
    assert pruned.weight.isfinite().all()
    silent = prune(ALPS(), weight, NofM(2, 4), torch.zeros_like(inputs))
    assert not silent.weight.count_nonzero()
    assert (silent.keep.view(-1, 4).sum(dim=1) == 2).all()


def test_the_search_ends_when_the_support_has_settled():
    weight, inputs = a_layer(7, rows=32, columns=64, tokens=400)
    pruned = prune(ALPS(), weight, Unstructured(0.5), inputs)
    assert pruned.record["iterations"] < 300
    assert prune(ALPS(iterations=4), weight, Unstructured(0.5), inputs).record["iterations"] == 4
