"""The engine agrees with a slow, plain walk over the whole model, whatever the family."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, make_model
from transformers import AutoModelForCausalLM

from spp_cli.errors import ConfigError, ModelError, NumericalError
from spp_cli.models.activations import ActivationStore
from spp_cli.models.calls import capture_calls
from spp_cli.models.decoder import Decoder, Linear, select
from spp_cli.models.streaming import ResidentModel
from spp_cli.progress import Silent
from spp_cli.pruning import engine
from spp_cli.pruning.magnitude import Magnitude
from spp_cli.pruning.method import PruningMethod
from spp_cli.pruning.sparsegpt import SparseGPT
from spp_cli.pruning.statistics import InputNorm, Statistic
from spp_cli.pruning.wanda import Wanda
from spp_cli.refining.refinement import NoRefinement
from spp_cli.sparsity.patterns import NofM, Pattern, Unstructured

CPU = torch.device("cpu")


@pytest.fixture
def load(tmp_path):
    """Return a maker of tiny models; the same family gives the same weights."""

    def make(family: str):
        folder = make_model(family, tmp_path / family)
        return AutoModelForCausalLM.from_pretrained(folder).eval()

    return make


def tokens(samples: int = 6, length: int = 24) -> torch.Tensor:
    return torch.randint(3, 128, (samples, length), generator=torch.Generator().manual_seed(0))


def prune_with_engine(
    model, method: PruningMethod, pattern: Pattern, batch_size: int = 2, leave_out: str = "-"
) -> dict[str, torch.Tensor]:
    """Return the masks by name; the model is pruned in place."""
    source = ResidentModel(model)
    linears = [linear for linear in source.decoder.all_linears() if leave_out not in linear.name]
    pruned = engine.prune_blocks(
        source,
        tokens().split(batch_size),
        linears,
        engine.Recipe(method, NoRefinement(), pattern, stored_dtype=lambda name: torch.float32),
        device=CPU,
        activations=ActivationStore("device", CPU),
        reporter=Silent(),
    )
    return {layer.linear.name: layer.keep for _, layers in pruned for layer in layers}


def watch(linear: Linear, statistic: Statistic):
    def hook(module, args):
        statistic.update(args[0].reshape(-1, args[0].shape[-1]).float(), samples=1)

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


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_blocks_run_alone_give_what_the_whole_model_computes(family, load):
    model = load(family)
    decoder = Decoder(model)
    outputs: list[torch.Tensor] = []
    handle = decoder.blocks[-1].register_forward_hook(
        lambda module, args, output: outputs.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    batches = tokens().split(4)  # the last is smaller
    for batch in batches:
        model(batch)
    handle.remove()
    calls = capture_calls(decoder, batches, ActivationStore("device", CPU))
    for batch, expected in enumerate(outputs):
        hidden_states = calls.hidden_states[batch]
        for index, block in enumerate(decoder.blocks):
            hidden_states = calls.run(block, index, batch, hidden_states)
        torch.testing.assert_close(hidden_states, expected, rtol=1e-4, atol=1e-5)


def test_equal_masks_are_kept_once_however_many_batches_there_are(load):
    decoder = Decoder(load("gemma2"))
    with torch.no_grad():
        calls = capture_calls(decoder, tokens(8).split(2), ActivationStore("device", CPU))
    leaves = [
        value
        for block in calls.arguments
        for _, keywords in block
        for value in keywords.values()
        if isinstance(value, torch.Tensor) and value.dim() == 4
    ]
    assert len(leaves) == 8  # one mask for each of four batches and two blocks
    assert len({mask.data_ptr() for mask in leaves}) == 2  # sliding and full attention


def test_linears_with_the_same_input_share_one_statistic(load, monkeypatch):
    made = []

    class Counted(InputNorm):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(Wanda, "statistic", Counted)
    prune_with_engine(load("llama"), Wanda(), Unstructured(0.5))
    # q, k and v; o; gate and up; down: in each of two blocks
    assert len(made) == 8


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
        engine.check_fits(linears, Wanda(), NofM(2, 5))


def test_globs_choose_linears_by_their_names_or_the_ends_of_them(load):
    linears = Decoder(load("llama")).all_linears()
    chosen = select(linears, ["*.mlp.*", "q_proj"], ["layers.0.*"])
    assert [linear.name.removeprefix("model.layers.") for linear in chosen] == [
        "1.self_attn.q_proj",
        "1.mlp.gate_proj",
        "1.mlp.up_proj",
        "1.mlp.down_proj",
    ]
