"""The four promises of every adapter, and what the released SPP gives for single layers."""

from __future__ import annotations

import importlib

import pytest
import torch
from golden_cases import LAYERS, case, layer
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from spp_cli.adapters import TABLE
from spp_cli.adapters.adapter import AdaptedLinear, AdapterMethod
from spp_cli.adapters.frozen import DenseWeight, PackedWeight
from spp_cli.adapters.spp import SPP, SPPLinear

KEEPING = [name for name in TABLE if name != "lora"]
shapes = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(0, 99))
storages = st.sampled_from([DenseWeight, PackedWeight])


def adapter_of(name: str, **keys: object) -> AdapterMethod:
    module, _, attribute = TABLE[name].partition(":")
    method: AdapterMethod = getattr(importlib.import_module(module), attribute)(**keys)
    return method


def sparse_weight(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight and its keep mask; some kept weights are zero too."""
    torch.manual_seed(seed)
    keep = torch.rand(rows, columns) < 0.4
    weight = torch.randn(rows, columns).masked_fill(torch.rand(rows, columns) < 0.2, 0.0)
    return weight.masked_fill(~keep, 0.0), keep


def train(adapted: AdaptedLinear, steps: int = 3) -> AdaptedLinear:
    """Take a few real steps of AdamW."""
    optimizer = torch.optim.AdamW(adapted.adapter_parameters().values(), lr=0.05)
    for _ in range(steps):
        inputs = torch.randn(8, adapted.in_features)
        adapted(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted


@pytest.mark.parametrize("name", TABLE)
@given(shapes, storages)
def test_it_starts_as_the_identity(name, shape, storage):
    weight, keep = sparse_weight(*shape)
    adapted = adapter_of(name).wrap(storage(weight, keep), None)
    inputs = torch.randn(3, weight.shape[1])
    assert torch.equal(adapted(inputs), inputs @ weight.T)
    assert torch.equal(adapted.effective_weight(), weight)


@pytest.mark.parametrize("name", TABLE)
@given(shapes, storages)
def test_forward_equals_merged(name, shape, storage):
    weight, keep = sparse_weight(*shape)
    adapted = train(adapter_of(name).wrap(storage(weight, keep), torch.randn(len(weight))))
    inputs = torch.randn(2, 3, adapted.in_features)
    weight = adapted.effective_weight()
    merged = nn.functional.linear(inputs, weight, adapted.bias)
    torch.testing.assert_close(adapted(inputs), merged, rtol=1e-5, atol=1e-5)
    adapted.set_weight(weight)
    assert torch.equal(adapted(inputs), merged)


@pytest.mark.parametrize("name", KEEPING)
@given(shapes, storages)
def test_pruned_weights_stay_zero(name, shape, storage):
    weight, keep = sparse_weight(*shape)
    merged = train(adapter_of(name).wrap(storage(weight, keep), None)).effective_weight()
    assert not merged[~keep].count_nonzero()


def test_plain_lora_fills_them_and_says_so():
    weight, keep = sparse_weight(32, 16, 0)
    adapted = train(adapter_of("lora").wrap(DenseWeight(weight), None))
    assert adapted.effective_weight()[~keep].count_nonzero()
    assert not adapted.keeps_zeros


@pytest.mark.parametrize("name", TABLE)
def test_only_the_adapter_trains(name):
    weight, keep = sparse_weight(32, 16, 0)
    adapted = train(adapter_of(name).wrap(DenseWeight(weight.clone(), keep), None))
    assert torch.equal(adapted.weight, weight)
    trainable = {key for key, value in adapted.named_parameters() if value.requires_grad}
    assert trainable == set(adapted.adapter_parameters())
    assert not torch.equal(adapted.effective_weight(), weight)  # and it did train


@pytest.mark.parametrize("name", TABLE)
@given(shapes)
def test_the_base_packed_gives_the_same_bits_as_dense(name, shape):
    weight, keep = sparse_weight(*shape)
    found = []
    for storage in (DenseWeight, PackedWeight):
        torch.manual_seed(1)
        adapted = train(adapter_of(name).wrap(storage(weight, keep), None), steps=2)
        X = torch.randn(4, adapted.in_features, requires_grad=True)
        output = adapted(X)
        output.square().sum().backward()
        found.append([output, X.grad, *(p.grad for p in adapted.adapter_parameters().values())])
    for dense, packed in zip(*found, strict=True):
        assert torch.equal(dense, packed)


@pytest.mark.parametrize("name", TABLE)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 8), st.integers(0, 99))
def test_gradients_pass_gradcheck(name, rows, columns, r, seed):
    weight, keep = sparse_weight(rows, columns, seed)
    keys = {"r": r} if "r" in type(adapter_of(name)).model_fields else {}
    adapted = adapter_of(name, **keys).wrap(DenseWeight(weight.double(), keep), None).double()
    for parameter in adapted.adapter_parameters().values():
        nn.init.normal_(parameter)
    names = list(adapted.adapter_parameters())
    X = torch.randn(2, 3, columns, dtype=torch.float64, requires_grad=True)
    parameters = [p.detach().requires_grad_() for p in adapted.adapter_parameters().values()]

    def layer(X, *values):
        return functional_call(adapted, dict(zip(names, values, strict=True)), X)

    assert torch.autograd.gradcheck(layer, (X, *parameters))


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_stay_float32_on_a_base_of_half_precision(name, dtype):
    weight, keep = sparse_weight(32, 16, 0)
    adapted = adapter_of(name).wrap(DenseWeight(weight.to(dtype), keep), None)
    output = adapted(torch.randn(4, 16).to(dtype))
    output.float().sum().backward()
    assert output.dtype == dtype
    gradients = [parameter.grad for parameter in adapted.adapter_parameters().values()]
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert any(gradient.count_nonzero() for gradient in gradients)
    assert adapted.effective_weight().dtype == torch.float32


@pytest.mark.parametrize("name", TABLE)
def test_it_follows_autocast(name):
    weight, keep = sparse_weight(32, 16, 0)
    adapted = train(adapter_of(name).wrap(DenseWeight(weight, keep), torch.randn(32)))
    inputs = torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        output = adapted(inputs)
        output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), adapted(inputs), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("name", TABLE)
def test_it_compiles_to_one_graph(name):
    weight, keep = sparse_weight(32, 16, 0)
    for storage in (DenseWeight, PackedWeight):
        torch._dynamo.reset()
        adapted = train(adapter_of(name).wrap(storage(weight, keep), torch.randn(32)))
        compiled = torch.compile(adapted, backend="aot_eager", fullgraph=True)
        inputs = torch.randn(4, 16, requires_grad=True)
        leaves = [inputs, *adapted.adapter_parameters().values()]
        plain = torch.autograd.grad(adapted(inputs).square().sum(), leaves)
        found = torch.autograd.grad(compiled(inputs).square().sum(), leaves)
        for ours, expected in zip(found, plain, strict=True):
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", TABLE)
def test_recomputed_activations_give_the_same_gradients(name):
    weight, keep = sparse_weight(16, 16, 0)
    adapted = train(adapter_of(name).wrap(DenseWeight(weight, keep), None))
    inputs = torch.randn(4, 16, requires_grad=True)
    leaves = [inputs, *adapted.adapter_parameters().values()]
    twice = lambda X: adapted(adapted(X).relu())  # noqa: E731
    plain = torch.autograd.grad(twice(inputs).square().sum(), leaves)
    again = checkpoint(twice, inputs, use_reentrant=False)
    for ours, expected in zip(
        torch.autograd.grad(again.square().sum(), leaves), plain, strict=True
    ):
        assert torch.equal(ours, expected)


def test_the_backward_keeps_no_more_than_the_input():
    weight, keep = sparse_weight(64, 32, 0)
    adapted = SPP().wrap(DenseWeight(weight, keep), None)
    inputs = torch.randn(4, 32, requires_grad=True)
    saved: list[torch.Tensor] = []
    keep_track = lambda tensor: saved.append(tensor) or tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(keep_track, lambda tensor: tensor):
        adapted(inputs)
    own = {id(inputs), *map(id, adapted.adapter_parameters().values())}
    assert {id(tensor) for tensor in saved} <= own


def golden_layer(weight: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scale: float) -> SPPLinear:
    adapted = SPPLinear(DenseWeight(weight), None, len(A), scale)
    adapted.A.data, adapted.B.data = A, B
    return adapted


@pytest.mark.parametrize("name", LAYERS)
def test_golden_outputs_gradients_and_merge(name):
    golden = layer(name)
    settings = (golden["spp_A"], golden["spp_B"], golden["spp_scale"].item())
    adapted = golden_layer(golden["wanda_2of8"], *settings)
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
    adapted = golden_layer(golden["W"], golden["A"], golden["B"][:, None], 2.0)
    output = adapted(golden["x"])
    output.backward(golden["upstream_grad"])
    torch.testing.assert_close(output, golden["y_adapter"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adapted.effective_weight(), golden["W_merged"])
    torch.testing.assert_close(adapted.A.grad, golden["grad_A"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adapted.B.grad.flatten(), golden["grad_B"], rtol=1e-5, atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_three_products_give_what_plain_autograd_gives(rows, columns, r, seed):
    weight, _ = sparse_weight(rows, columns, seed)
    groups = min(r, rows)
    A, B = torch.randn(groups, columns), torch.randn(rows, 1)
    X, upstream = torch.randn(5, columns), torch.randn(5, rows)

    def gradients(product):
        leaves = [tensor.clone().requires_grad_() for tensor in (X, A, B)]
        return torch.autograd.grad(product(*leaves), leaves, upstream)

    rho = torch.tensor([i * groups // rows for i in range(rows)])
    plain = gradients(lambda X, A, B: X @ (weight * (1 + 2.0 * A[rho] * B)).T)
    adapted = SPPLinear(DenseWeight(weight), None, r, 2.0)
    ours = gradients(lambda X, A, B: functional_call(adapted, {"A": A, "B": B}, X))
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_golden_of_lora_with_and_without_the_mask():
    names = ("W", "lora_A", "lora_B", "W_dense_merge", "W_lora_star")
    golden = {name: torch.tensor(case("masked_lora_merge")[name]) for name in names}
    keep = golden["W"] != 0
    for name, expected in (("lora", "W_dense_merge"), ("masked-lora", "W_lora_star")):
        method = adapter_of(name, r=len(golden["lora_A"]), scale=case("masked_lora_merge")["scale"])
        adapted = method.wrap(DenseWeight(golden["W"], keep), None)
        adapted.A.data, adapted.B.data = golden["lora_A"], golden["lora_B"]
        torch.testing.assert_close(adapted.effective_weight(), golden[expected])
