"""The engine agrees with a slow, plain walk over the whole model, whatever the family."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from conftest import make_model
from transformers import AutoModelForCausalLM

from spp_cli.errors import ConfigError, ModelError, NumericalError
from spp_cli.models.activations import ActivationStore
from spp_cli.models.decoder import Decoder, Linear
from spp_cli.models.streaming import ResidentModel
from spp_cli.progress import Silent
from spp_cli.pruning import engine
from spp_cli.pruning.magnitude import Magnitude
from spp_cli.pruning.method import PruningMethod
from spp_cli.pruning.orders import TwoPass
from spp_cli.pruning.sparsegpt import SparseGPT
from spp_cli.pruning.statistics import Statistic
from spp_cli.pruning.wanda import Wanda
from spp_cli.refining.refinement import NoRefinement
from spp_cli.sparsity.patterns import NofM, Pattern, Unstructured

CPU = torch.device("cpu")


@pytest.fixture
def load(tmp_path):
    """Return a maker of tiny models in float32; the same family gives the same weights."""

    def make(family: str, stored: torch.dtype = torch.float32):
        folder = make_model(family, tmp_path / family, stored)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    return make


def tokens(samples: int = 6, length: int = 24) -> torch.Tensor:
    return torch.randint(3, 128, (samples, length), generator=torch.Generator().manual_seed(0))


def recipe(
    method: PruningMethod, pattern: Pattern, stored: torch.dtype = torch.float32
) -> engine.Recipe:
    patterns: dict[str, Pattern] = defaultdict(lambda: pattern)
    return engine.Recipe(method, NoRefinement(), patterns, stored_dtype=lambda name: stored)


def prune_with_engine(
    model,
    method: PruningMethod,
    pattern: Pattern,
    batch_size: int = 2,
    leave_out: str = "-",
    reporter: Silent | None = None,
) -> dict[str, torch.Tensor]:
    """Return the masks by name; the model is pruned in place."""
    source = ResidentModel(model)
    linears = [linear for linear in source.decoder.all_linears() if leave_out not in linear.name]
    pruned = engine.prune_blocks(
        source,
        tokens().split(batch_size),
        linears,
        recipe(method, pattern),
        order=TwoPass(),
        device=CPU,
        activations=ActivationStore("device", CPU),
        reporter=reporter or Silent(),
    )
    return {layer.linear.name: layer.keep for _, layers in pruned for layer in layers}


def watch(linear: Linear, statistic: Statistic):
    def hook(module, args):
        statistic.update(args[0].reshape(1, -1, args[0].shape[-1]).float(), samples=1)

    return linear.module.register_forward_pre_hook(hook)


@torch.no_grad()
def prune_plainly(model, method: PruningMethod, pattern: Pattern) -> dict[str, torch.Tensor]:
    """The two-pass order by its definition: the whole model runs again for every block."""
    masks = {}
    decoder = Decoder(model)
    for index in range(len(decoder.blocks)):
        statistics, hooks = {}, []

        for linear in decoder.linears(index):
            statistics[linear.name] = method.statistic(linear.in_features, CPU)
            hooks.append(watch(linear, statistics[linear.name]))
        for sequence in tokens():
            model(sequence[None])
        for handle in hooks:
            handle.remove()
        for linear in decoder.linears(index):
            prepared = method.prepare(statistics[linear.name])
            pruned = method.prune(linear.weight.clone(), prepared, pattern)
            linear.weight.copy_(pruned.weight)
            masks[linear.name] = pruned.keep
    return masks


@pytest.mark.parametrize("method", [Wanda(), SparseGPT(block_size=32)], ids=["wanda", "sparsegpt"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "gemma3"])
def test_it_prunes_as_a_plain_walk_over_the_whole_model_does(family, method, load):
    pattern = NofM(2, 4)
    ours, plain = load(family), load(family)
    masks = prune_with_engine(ours, method, pattern)
    expected = prune_plainly(plain, method, pattern)
    assert masks.keys() == expected.keys()
    # Sums in another order may turn a near tie: at most one weight in a thousand.
    differing = sum(int((masks[name] != expected[name]).sum()) for name in masks)
    assert differing <= sum(mask.numel() for mask in masks.values()) // 1000
    if not differing:
        found, wanted = ours(tokens()).logits, plain(tokens()).logits
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_text_flows_on_as_it_will_through_the_model_that_is_stored(load, tmp_path):
    model = load("gemma2", torch.bfloat16)  # computed in float32, stored in bfloat16
    source = ResidentModel(model)
    activations = ActivationStore("device", CPU)
    walk = engine.prune_blocks(
        source,
        tokens().split(2),
        source.decoder.all_linears(),
        recipe(SparseGPT(block_size=32), NofM(2, 4), torch.bfloat16),
        order=TwoPass(),
        device=CPU,
        activations=activations,
        reporter=Silent(),
    )
    weights = {layer.linear.name: layer.weight for _, layers in walk for layer in layers}
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    model.to(torch.bfloat16).save_pretrained(tmp_path / "stored")

    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "stored", dtype=torch.float32)
    received: list[torch.Tensor] = []
    last = Decoder(reloaded).blocks[-1]
    last.register_forward_pre_hook(lambda module, args: received.append(args[0]))
    for batch, input_ids in enumerate(tokens().split(2)):
        reloaded.eval()(input_ids)
        torch.testing.assert_close(activations[batch], received[batch], rtol=1e-5, atol=1e-6)
    for linear in Decoder(reloaded).all_linears():
        assert torch.equal(linear.weight, weights[linear.name].float())


def test_one_block_at_a_time_is_brought_and_freed(load):
    events: list[tuple[str, int]] = []

    class Watched(ResidentModel):
        def load(self, index, device):
            events.append(("load", index))
            return super().load(index, device)

        def free(self, index):
            events.append(("free", index))
            super().free(index)

    source = Watched(load("llama"))
    linears = source.decoder.all_linears()
    for _ in engine.prune_blocks(
        source,
        tokens().split(2),
        linears,
        recipe(Wanda(), NofM(2, 4)),
        order=TwoPass(),
        device=CPU,
        activations=ActivationStore("device", CPU),
        reporter=Silent(),
    ):
        pass
    first = ("load", 0)  # its forward shows how blocks return
    assert events == [first, ("load", 0), ("free", 0), ("load", 1), ("free", 1)]


def test_the_batch_size_decides_nothing(load):
    masks = [
        prune_with_engine(load("llama"), Wanda(), Unstructured(0.5), batch_size)
        for batch_size in (1, 6)
    ]
    differing = sum(int((masks[0][name] != masks[1][name]).sum()) for name in masks[0])
    assert differing <= 2  # a near tie may turn with the order of a sum


def test_what_is_left_out_stays_as_it_was(load):
    model, dense = load("llama"), load("llama")
    masks = prune_with_engine(model, Wanda(), NofM(2, 4), leave_out="down_proj")
    assert not any("down_proj" in name for name in masks)
    for index in range(2):
        before = dense.model.layers[index].mlp.down_proj.weight
        assert torch.equal(model.model.layers[index].mlp.down_proj.weight, before)


def test_magnitude_needs_no_text(load, monkeypatch):
    monkeypatch.setattr(engine, "capture_calls", None)  # calling it would fail
    masks = prune_with_engine(load("opt"), Magnitude(), Unstructured(0.5))
    assert len(masks) == 12


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(value, load):
    model = load("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = value
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj holds NaN or infinity"):
        prune_with_engine(model, Magnitude(), Unstructured(0.5))


def test_an_input_that_is_no_number_is_named(load):
    model = load("llama")
    model.model.layers[0].post_attention_layernorm.weight.data[0] = float("inf")
    with pytest.raises(NumericalError, match=r"inputs of model\.layers\.0\.mlp\.gate_proj, .*up"):
        prune_with_engine(model, Wanda(), Unstructured(0.5))


def test_a_width_that_does_not_divide_is_refused_before_anything_runs(load):
    linears = Decoder(load("llama")).all_linears()
    with pytest.raises(ConfigError, match=r"'2:5'; model\.layers\.0\.self_attn\.q_proj has 64"):
        engine.check_fits(linears, Wanda(), defaultdict(lambda: NofM(2, 5)))
