"""The four promises of every adapter, and what the released SPP gives for single layers."""

from __future__ import annotations

import importlib

import pytest
import torch
from golden_cases import LAYERS, case, layer
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spp_cli.adapters import TABLE
from spp_cli.adapters.adapter import AdaptedLinear, AdapterMethod
from spp_cli.adapters.spp import SPPLinear, _Product


def adapter_of(name: str) -> AdapterMethod:
    module, _, attribute = TABLE[name].partition(":")
    method: AdapterMethod = getattr(importlib.import_module(module), attribute)()
    return method


def sparse_weight(rows: int, columns: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(rows, columns).masked_fill(torch.rand(rows, columns) < 0.7, 0.0)


def trained(name: str, weight: torch.Tensor, steps: int = 3) -> AdaptedLinear:
    """Return an adapted layer after a few real steps of AdamW."""
    adapted = adapter_of(name).wrap(weight, torch.randn(len(weight)))
    optimizer = torch.optim.AdamW(adapted.adapter_parameters().values(), lr=0.05)
    for _ in range(steps):
        inputs = torch.randn(8, weight.shape[1])
        adapted(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted


shapes = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(0, 99))


@pytest.mark.parametrize("name", TABLE)
@given(shapes)
def test_it_starts_as_the_identity(name, shape):
    weight = sparse_weight(*shape)
    adapted = adapter_of(name).wrap(weight, None)
    inputs = torch.randn(3, weight.shape[1])
    assert torch.equal(adapted(inputs), inputs @ weight.T)
    assert torch.equal(adapted.effective_weight(), weight)


@pytest.mark.parametrize("name", TABLE)
@given(shapes)
def test_forward_equals_merged(name, shape):
    adapted = trained(name, sparse_weight(*shape))
    inputs = torch.randn(2, 3, adapted.in_features)
    merged = nn.functional.linear(inputs, adapted.effective_weight(), adapted.bias)
    torch.testing.assert_close(adapted(inputs), merged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TABLE)
@given(shapes)
def test_exact_zeros_stay_zero(name, shape):
    weight = sparse_weight(*shape)
    merged = trained(name, weight.clone()).effective_weight()
    assert not merged[weight == 0].count_nonzero()


@pytest.mark.parametrize("name", TABLE)
def test_only_the_adapter_trains(name):
    weight = sparse_weight(32, 16, 0)
    adapted = trained(name, weight.clone())
    assert torch.equal(adapted.weight, weight)
    trainable = {key for key, value in adapted.named_parameters() if value.requires_grad}
    assert trainable == set(adapted.adapter_parameters())
    assert not torch.equal(adapted.effective_weight(), weight)  # and it did train


@pytest.mark.parametrize("name", LAYERS)
def test_golden_outputs_gradients_and_merge(name):
    golden = layer(name)
    adapted = SPPLinear(
        golden["wanda_2of8"], None, len(golden["spp_A"]), golden["spp_scale"].item()
    )
    adapted.A.data, adapted.B.data = golden["spp_A"], golden["spp_B"]
    inputs = golden["inputs"][0].requires_grad_()
    output = adapted(inputs)
    output.backward(golden["spp_grad_output"])
    for found, expected in (
        (output, "spp_output"),
        (inputs.grad, "spp_grad_input"),
        (adapted.A.grad, "spp_grad_A"),
        (adapted.B.grad, "spp_grad_B"),
        (adapted.effective_weight(), "spp_merged"),
    ):
        torch.testing.assert_close(found, golden[expected], rtol=1e-4, atol=1e-4)


def test_golden_of_the_released_layer_on_three_dimensional_inputs():
    names = ("W", "A", "B", "x", "y_adapter", "upstream_grad", "W_merged", "grad_A", "grad_B")
    golden = {name: torch.tensor(case("spp_forward_merge")[name]) for name in names}
    adapted = SPPLinear(golden["W"], None, 16, 2.0)
    adapted.A.data, adapted.B.data = golden["A"], golden["B"][:, None]
    output = adapted(golden["x"])
    output.backward(golden["upstream_grad"])
    torch.testing.assert_close(output, golden["y_adapter"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adapted.effective_weight(), golden["W_merged"])
    torch.testing.assert_close(adapted.A.grad, golden["grad_A"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adapted.B.grad.flatten(), golden["grad_B"], rtol=1e-5, atol=1e-5)


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 8), st.integers(0, 99))
def test_gradients_pass_gradcheck_whether_or_not_the_groups_divide(rows, columns, r, seed):
    weight = sparse_weight(rows, columns, seed).double()
    A = torch.randn(min(r, rows), columns, dtype=torch.float64, requires_grad=True)
    B = torch.randn(rows, 1, dtype=torch.float64, requires_grad=True)
    X = torch.randn(2, 3, columns, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: _Product.apply(a[0], weight, *a[1:], 2.0), (X, A, B))


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_three_products_give_what_plain_autograd_gives(rows, columns, r, seed):
    weight = sparse_weight(rows, columns, seed)
    groups = min(r, rows)
    A, B = torch.randn(groups, columns), torch.randn(rows, 1)
    X, upstream = torch.randn(5, columns), torch.randn(5, rows)

    def gradients(product):
        leaves = [tensor.clone().requires_grad_() for tensor in (X, A, B)]
        return torch.autograd.grad(product(*leaves), leaves, upstream)

    rho = torch.tensor([i * groups // rows for i in range(rows)])
    plain = gradients(lambda X, A, B: X @ (weight * (1 + 2.0 * A[rho] * B)).T)
    ours = gradients(lambda X, A, B: _Product.apply(X, weight, A, B, 2.0))
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_adapters_stay_float32_on_a_bfloat16_base():
    weight = sparse_weight(32, 16, 0).bfloat16()
    adapted = SPPLinear(weight, None, 16, 2.0)
    output = adapted(torch.randn(4, 16).bfloat16())
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert adapted.B.grad.dtype == torch.float32
    assert adapted.effective_weight().dtype == torch.float32


def test_it_works_under_autocast():
    adapted = SPPLinear(sparse_weight(32, 16, 0), torch.randn(32), 16, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        output = adapted(torch.randn(4, 16))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert adapted.B.grad.isfinite().all()
