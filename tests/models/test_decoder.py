"""The decoder blocks and their linears are found in any family, by one rule that names none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, make_model
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3Config,
    PreTrainedModel,
    RwkvConfig,
)
from transformers.pytorch_utils import Conv1D

from spp_cli.errors import ConfigError, ModelError
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.decoder import BLOCKS, Decoder, Linear, select
from spp_cli.models.loading import load_model

LINEARS_OF_A_BLOCK = {
    "gpt2": 4,  # c_attn holds q, k and v
    "openai-gpt": 4,
    "gpt_neox": 4,
    "falcon": 4,
    "bloom": 4,
    "glm_moe_dsa": 15.5,  # the second block has experts, and no indexer
    "phi3": 4,  # qkv_proj and gate_up_proj are fused
    "opt": 6,
    "phi": 6,
    # attention, and three projections of each of four experts
    "mixtral": 16,
    "qwen2_moe": 19,  # and of an expert for all tokens
    "qwen3_moe": 16,
    "olmoe": 16,
    "granitemoe": 16,
    "gpt_oss": 16,
    "deepseek_v3": 14,  # the mean of a block with a plain MLP, 8, and one with experts, 20
}


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], PreTrainedModel]:
    """Return a maker of tiny models."""
    return lambda family: load_model(Checkpoint(make_model(family, tmp_path / family)))


def test_no_family_needs_an_entry_of_its_own():
    assert not BLOCKS


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linears_of_all_blocks_are_found_and_nothing_else(family, load):
    model = load(family)
    decoder = Decoder(model)
    assert len(decoder.blocks) == 2
    linears = decoder.all_linears()
    assert len(linears) == 2 * LINEARS_OF_A_BLOCK.get(family, 7)
    for linear in linears:
        assert model.get_submodule(linear.name) is linear.module
    inside = {id(linear.module) for linear in linears}
    assert id(model.get_output_embeddings()) not in inside
    assert id(model.get_input_embeddings()) not in inside
    # Every matrix of the blocks is in one of them, but for those that choose experts.
    routers = ("mlp.gate.weight", "mlp.shared_expert_gate.weight", ".router.weight")
    assert all(name.endswith(routers) for name in decoder.outside_linears())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_weight_is_output_by_input_whatever_the_module_stores(family, load):
    for linear in Decoder(load(family)).all_linears():
        inputs = torch.randn(3, linear.in_features)
        outputs = torch.nn.functional.linear(inputs, linear.weight, linear.module.bias)
        torch.testing.assert_close(linear.module(inputs), outputs)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_stored_and_back_is_the_weight_itself(rows, columns):
    for module in (torch.nn.Linear(columns, rows), Conv1D(rows, columns)):
        linear = Linear("a", module)
        weight = torch.randn(rows, columns)
        assert torch.equal(linear.as_stored(linear.as_stored(weight)), weight)
        assert linear.as_stored(weight).shape == linear.parameter.shape
        linear.weight.copy_(weight)  # a view: the module has it now
        assert torch.equal(linear.as_stored(linear.parameter.data), weight)


def test_experts_in_one_tensor_are_counted_as_outside_the_linears(tmp_path):
    folder = make_model("mixtral", tmp_path / "model")
    decoder = Decoder(AutoModelForCausalLM.from_pretrained(folder))  # not taken apart
    outside = decoder.outside_linears()
    assert outside["model.layers.1.mlp.experts.gate_up_proj"] == 4 * (2 * 96) * 64
    assert outside["model.layers.1.mlp.experts.down_proj"] == 4 * 64 * 96
    assert len(outside) == 2 * 3  # and the router, in each of two blocks


def test_what_reads_images_is_not_taken_for_the_decoder_however_large():
    config = Gemma3Config(
        text_config=FAMILIES["gemma3"][1],
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )
    decoder = Decoder(AutoModelForCausalLM.from_config(config))
    assert decoder.path == "model.language_model.layers"
    assert len(decoder.blocks) == 2


def test_a_family_without_attention_is_found_by_the_same_rule():
    config = RwkvConfig(hidden_size=16, num_hidden_layers=3, vocab_size=32)
    decoder = Decoder(AutoModelForCausalLM.from_config(config))
    assert (decoder.path, len(decoder.blocks)) == ("rwkv.blocks", 3)


def test_a_model_without_blocks_is_refused():
    config = BloomConfig(hidden_size=16, n_layer=0, n_head=2, vocab_size=32)
    with pytest.raises(ModelError, match="no decoder blocks with linear layers found in a bloom"):
        Decoder(AutoModelForCausalLM.from_config(config))


def test_globs_choose_linears_by_their_names_or_the_ends_of_them(load):
    linears = Decoder(load("llama")).all_linears()
    chosen = select(linears, ["*.mlp.*", "q_proj"], ["layers.0.*"])
    assert [linear.name.removeprefix("model.layers.") for linear in chosen] == [
        "1.self_attn.q_proj",
        "1.mlp.gate_proj",
        "1.mlp.up_proj",
        "1.mlp.down_proj",
    ]


@pytest.mark.parametrize(
    ("include", "exclude", "says"),
    [
        (["*"], ["w_proj"], r"prune\.exclude has 'w_proj', which .* There are: q_proj, k_proj, v"),
        (["mlp"], [], r"prune\.include has 'mlp', which matches no linear layer"),
        (["*"], ["*"], r"prune\.exclude matches every linear layer that prune\.include"),
        (["q_proj"], ["*.self_attn.*"], r"so that none is left\. Shorten prune\.exclude"),
    ],
)
def test_globs_that_choose_nothing_are_refused(include, exclude, says, load):
    with pytest.raises(ConfigError, match=says):
        select(Decoder(load("llama")).all_linears(), include, exclude)
