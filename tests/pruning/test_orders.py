"""Both orders agree with slow, plain walks over the whole model that follow their definitions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar, get_args

import pytest
import torch
from conftest import make_model
from torch import nn

from spp_cli.config import PruneConfig
from spp_cli.errors import ModelError
from spp_cli.models.activations import ActivationStore
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.decoder import Decoder
from spp_cli.models.loading import load_model
from spp_cli.models.streaming import ResidentModel
from spp_cli.progress import Silent
from spp_cli.pruning import engine
from spp_cli.pruning.magnitude import Magnitude
from spp_cli.pruning.method import PruningMethod
from spp_cli.pruning.orders import ORDERS
from spp_cli.pruning.sparsegpt import SparseGPT
from spp_cli.pruning.statistics import InputNorm, PairedGram
from spp_cli.pruning.wanda import Wanda
from spp_cli.refining.refinement import NoRefinement
from spp_cli.sparsity.patterns import NofM, Pattern, Unstructured

CPU = torch.device("cpu")


@pytest.fixture
def load(tmp_path):
    """Return a maker of tiny models in float32; the same family gives the same weights."""

    def make(family: str, **changes: object):
        folder = make_model(family, tmp_path / family, torch.float32, **changes)
        return load_model(Checkpoint(folder), dtype=torch.float32)

    return make


def tokens(samples: int = 6, length: int = 24) -> torch.Tensor:
    return torch.randint(3, 128, (samples, length), generator=torch.Generator().manual_seed(0))


def prune(
    model,
    order: str,
    method: PruningMethod | None = None,
    pattern: Pattern | None = None,
    reporter: Silent | None = None,
    batches: Sequence[torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the masks by name; the model is pruned in place."""
    source = ResidentModel(model)
    chosen: Pattern = pattern or NofM(2, 4)
    patterns: dict[str, Pattern] = defaultdict(lambda: chosen)
    dtype = lambda name: torch.float32  # noqa: E731
    walk = engine.prune_blocks(
        source,
        batches or tokens().split(2),
        source.decoder.all_linears(),
        engine.Recipe(method or Wanda(), NoRefinement(), patterns, dtype),
        order=ORDERS[order](),
        device=CPU,
        activations=ActivationStore("device", CPU),
        reporter=reporter or Silent(),
    )
    return {layer.linear.name: layer.keep for _, layers in walk for layer in layers}


@torch.no_grad()
def called_with(model, linear) -> InputNorm:
    """Return the statistic of a linear's inputs, from a run of the whole model as it is."""
    statistic = InputNorm(linear.in_features, CPU)
    hook = linear.module.register_forward_pre_hook(
        lambda module, args: statistic.update(args[0].reshape(1, -1, args[0].shape[-1]), 1)
    )
    for sequence in tokens():
        model(sequence[None])
    hook.remove()
    return statistic


def order_of_calls(model) -> list:
    """Return the linears in the order in which a forward calls them."""
    linears, called, hooks = Decoder(model).all_linears(), [], []
    for linear in linears:
        hook = lambda module, args, linear=linear: called.append(linear)  # noqa: E731
        hooks.append(linear.module.register_forward_pre_hook(hook))
    model(tokens())
    for hook in hooks:
        hook.remove()
    return called


@pytest.mark.parametrize(
    "family",
    ["llama", "gpt2", "gpt_neox", "falcon", "phi", "gemma3", "mixtral", "qwen2_moe", "qwen3_moe"],
)
def test_in_one_pass_each_linear_sees_what_the_pruned_ones_before_it_give(family, load):
    ours, plain = load(family), load(family)
    masks = prune(ours, "one-pass")
    expected = {}
    for linear in order_of_calls(plain):
        pruned = Wanda().prune(linear.weight.clone(), called_with(plain, linear), NofM(2, 4))
        linear.weight.copy_(pruned.weight)
        expected[linear.name] = pruned.keep
    assert masks.keys() == expected.keys()
    differing = sum(int((masks[name] != expected[name]).sum()) for name in masks)
    # Sums in another order may turn a near tie: at most one weight in a thousand.
    assert differing <= sum(mask.numel() for mask in masks.values()) // 1000


class SeesBoth(PruningMethod):
    """Prunes by magnitude, and remembers Σ (y − x)ᵀx of each input in the order of pruning."""

    statistic: ClassVar[type] = PairedGram
    name: str = "sees-both"

    def prepare(self, statistic: PairedGram) -> PairedGram:
        seen.append(statistic.difference())
        return statistic

    def prune(self, weight, prepared, pattern):
        return Magnitude().prune(weight, prepared, pattern)


seen: list[tuple[torch.Tensor, torch.Tensor] | None] = []


@torch.no_grad()
def inputs_of(model, linear) -> torch.Tensor:
    """Return what a linear is called with, (tokens, in_features), in a run of the whole model."""
    found = []
    hook = linear.module.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    model(tokens())
    hook.remove()
    return found[0].flatten(0, 1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi", "cohere", "gemma3"])
def test_in_one_pass_it_is_known_what_the_dense_block_would_give_each_linear(family, load):
    ours, plain = load(family), load(family)
    seen.clear()
    prune(ours, "one-pass", SeesBoth())
    decoder, differs = Decoder(plain), 0
    pruned_of = {linear.name: linear.weight.clone() for linear in Decoder(ours).all_linears()}
    given = iter(seen)
    for index in range(len(decoder.blocks)):
        inside = decoder.linears(index)
        called = [each for each in order_of_calls(plain) if each.name in {x.name for x in inside}]
        dense = {linear.name: inputs_of(plain, linear) for linear in called}
        for linear in called:
            x, y = inputs_of(plain, linear), dense[linear.name]
            linear.weight.copy_(pruned_of[linear.name])
            before = [dense[each.name] for each in called[: called.index(linear)]]
            if any(torch.equal(y, earlier) for earlier in before):
                continue  # it shares the statistic of that one
            found, expected = next(given), (y - x).T @ x * (2 / 6)
            if found is None:
                assert not (y - x).abs().max() > 1e-5
                continue
            differs += 1
            torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-4)
            square = (y - x).T @ (y - x) * (2 / 6)
            torch.testing.assert_close(found[1], square, rtol=1e-3, atol=1e-4)
    assert differs >= 2
    assert next(given, "end") == "end"


def test_in_two_passes_all_inputs_are_those_of_the_dense_block(load):
    seen.clear()
    prune(load("llama"), "two-pass", SeesBoth())
    assert seen == [None] * 8


@pytest.mark.parametrize("chosen", [2, 4])  # of 4: all come to each, in an order of its own
def test_experts_have_nothing_to_be_compared_with(chosen, load):
    seen.clear()
    prune(load("mixtral", num_experts_per_tok=chosen), "one-pass", SeesBoth())
    assert sum(pair is not None for pair in seen) == 2  # o of both blocks


class SeesNorms(Wanda):
    """Wanda that remembers the norms of all inputs it is shown."""

    def prepare(self, statistic):
        norms.append(statistic.norm())
        return super().prepare(statistic)


norms: list[torch.Tensor] = []


@pytest.mark.parametrize("order", ORDERS)
def test_what_comes_to_an_expert_is_as_large_whatever_the_batches(order, load):
    found = []
    for size in (1, 6):
        norms.clear()
        prune(load("qwen3_moe"), order, SeesNorms(), batches=tokens(6, 4).split(size))
        found.append(torch.cat(norms))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_that_some_batches_pass_by_are_pruned_on_the_tokens_of_the_others(family, load):
    # Six batches of four tokens: most experts are passed by now and then.
    model = load(family)
    batches = tokens(6, 4).split(1)
    masks = prune(model, "one-pass", batches=batches)
    assert masks.keys() == {linear.name for linear in Decoder(model).all_linears()}
    for mask in masks.values():
        assert bool((mask.view(-1, 4).sum(dim=1) == 2).all())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("method", [Wanda(), SparseGPT(block_size=32)], ids=["wanda", "sparsegpt"])
def test_the_text_flows_on_through_the_pruned_block(order, method, load):
    model = load("llama")
    last_inputs = {}
    source = ResidentModel(model)
    activations = ActivationStore("device", CPU)
    patterns: dict[str, Pattern] = defaultdict(lambda: Unstructured(0.5))
    for _ in engine.prune_blocks(
        source,
        tokens().split(2),
        source.decoder.all_linears(),
        engine.Recipe(method, NoRefinement(), patterns, lambda name: torch.float32),
        order=ORDERS[order](),
        device=CPU,
        activations=activations,
        reporter=Silent(),
    ):
        pass
    last = Decoder(model).blocks[-1]
    last.register_forward_pre_hook(lambda module, args: last_inputs.update(hidden=args[0]))
    for batch, input_ids in enumerate(tokens().split(2)):
        model(input_ids)
        torch.testing.assert_close(activations[batch], last_inputs["hidden"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_linears_with_one_input_share_one_statistic(order, load, monkeypatch):
    made = []

    class Counted(InputNorm):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(Wanda, "statistic", Counted)
    prune(load("llama"), order)
    # q, k and v; o; gate and up; down: in each of two blocks
    assert len(made) == 8


@pytest.mark.parametrize("order", ORDERS)
def test_layers_may_be_called_in_another_order_than_they_are_defined_in(order, load):
    model = load("llama")
    for layer in model.model.layers:
        gate = layer.mlp.gate_proj
        del layer.mlp.gate_proj
        layer.mlp.gate_proj = gate  # now behind up and down
    reporter = Silent()
    masks, expected = prune(model, order, reporter=reporter), prune(load("llama"), order)
    assert not reporter.warnings
    assert all(torch.equal(masks[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("order", "runs"), [("one-pass", [3, 0]), ("two-pass", [3 + 1, 1])])
def test_nothing_is_computed_behind_the_last_statistic(order, runs, load):
    # Three batches. One that shows what is shared, or the order of calls, runs to the end; the last
    # linear of the last block feeds nothing that is looked at.
    model = load("llama")
    computed = [0, 0]
    for index, block in enumerate(Decoder(model).blocks):

        def count(module, args, output, index=index):
            computed[index] += 1

        block.mlp.down_proj.register_forward_hook(count)
    prune(model, order)
    shows_the_form_of_blocks, shows_sharing = 1, order == "one-pass"
    assert computed == [runs[0] + shows_the_form_of_blocks + shows_sharing, runs[1]]


def test_a_linear_that_is_called_twice_counts_both_calls_or_is_refused(load):
    model = load("llama")
    mlp = model.model.layers[0].mlp
    original = mlp.forward
    mlp.forward = lambda hidden: original(original(hidden))
    masks = prune(model, "two-pass")
    assert len(masks) == 14
    model = load("llama")
    for layer in model.model.layers:
        layer.mlp.forward = lambda hidden, forward=layer.mlp.forward: forward(forward(hidden))
    with pytest.raises(ModelError, match=r"calls model\.layers\.0\.mlp\.gate_proj again.*two-pass"):
        prune(model, "one-pass")


@pytest.mark.parametrize("order", ORDERS)
def test_a_linear_that_no_text_reaches_is_pruned_by_magnitude(order, load):
    model = load("llama")
    attention = model.model.layers[1].self_attn
    attention.unused = nn.Linear(64, 8)
    dense = attention.unused.weight.clone()
    masks = prune(model, order, pattern=Unstructured(0.5))
    expected = Magnitude().prune(dense, None, Unstructured(0.5))
    assert torch.equal(masks["model.layers.1.self_attn.unused"], expected.keep)


@pytest.mark.parametrize("order", ORDERS)
def test_no_hook_is_left_behind_when_a_block_fails(order, load):
    model = load("llama")
    model.model.layers[1].mlp.act_fn = None
    with pytest.raises(TypeError):
        prune(model, order)
    assert not any(linear.module._forward_pre_hooks for linear in Decoder(model).all_linears())


def test_the_configuration_knows_the_orders():
    allowed = get_args(PruneConfig.model_fields["order"].annotation)
    assert allowed == ("auto", *ORDERS, "dense")
