"""Which linears can be pruned: found without a weight, and the same with weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from check_families import check
from conftest import FAMILIES, make_model
from tiny_families import save
from transformers import AutoModelForCausalLM, FalconConfig, Gemma3nTextConfig

from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.decoder import Decoder
from spp_cli.models.loading import empty_model
from spp_cli.models.prunable import Prunable

CROSS = "model.decoder.layers.*.encoder_attn"
STAYS = {
    "falcon_mamba": {
        "backbone.layers.*.mixer.dt_proj.weight": "its weight is used without a call of the layer",
        "backbone.layers.*.mixer.conv1d.weight": "is a convolution",
    },
    "bart": {f"{CROSS}.{name}_proj.weight": "is not used by the decoder" for name in ("k", "out")},
    "deepseek_v4": {"model.layers.*.self_attn.o_a_proj.weight": "computes in another way"},
    "zamba": {"model.layers.*.shared_transf.self_attn.q_proj.weight": "is shared by several"},
    "glm_moe_dsa": {
        "model.layers.*.self_attn.indexer.weights_proj.weight": "steers: few outputs",
        "model.layers.*.mlp.gate.weight": "steers: chooses among experts",
    },
    "gemma3n_text": {"model.layers.*.altup.prediction_coefs.weight": "steers: few outputs"},
    "zaya": {"model.layers.*.mlp.gate.down_proj.weight": "steers: chooses among experts"},
    "jetmoe": {"model.layers.*.mlp.input_linear.weight": "is in no linear layer"},
}


@pytest.mark.parametrize("family", STAYS)
def test_what_stays_dense_is_named_with_the_reason_and_is_no_linear_to_prune(
    family: str, tmp_path: Path
) -> None:
    decoder = Decoder(empty_model(Checkpoint(folder_of(family, tmp_path))))
    before = {name: id(parameter) for name, parameter in decoder.model.named_parameters()}
    prunable = Prunable(decoder)
    pruned = {linear.name for linear in prunable.linears}
    described = prunable.described(pruned)
    for name, why in STAYS[family].items():
        assert described["dense"][name]["why"].startswith(why)
        assert not any(fits(linear, name) for linear in pruned)
    assert {name: id(parameter) for name, parameter in decoder.model.named_parameters()} == before

    every = {id(p): p for block in decoder.blocks for p in block.parameters()}.values()
    vectors = sum(parameter.numel() for parameter in every if parameter.dim() < 2)
    of_linears = sum(linear.weight.numel() for linear in prunable.linears)
    of_dense = sum(entry["weights"] for entry in described["dense"].values())
    assert described["block_weights"] == sum(parameter.numel() for parameter in every)
    assert described["block_weights"] == of_linears + of_dense + vectors


def folder_of(family: str, folder: Path) -> Path:
    save(family, folder / "model")
    return folder / "model"


def fits(linear: str, glob: str) -> bool:
    return re.sub(r"\.\d+\.", ".*.", f"{linear}.weight") == glob


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linears_of_most_families_can_be_pruned(family: str, tmp_path: Path) -> None:
    folder = make_model(family, tmp_path / family)
    loaded = Prunable(Decoder(AutoModelForCausalLM.from_pretrained(folder)))
    prunable = Prunable(Decoder(empty_model(Checkpoint(folder))))
    few = ["model.layers.0.self_attn.indexer.weights_proj"] if family == "glm_moe_dsa" else []
    assert list(prunable.reasons) == list(loaded.reasons) == few


def test_what_steers_is_told_by_its_size_in_models_of_real_sizes() -> None:
    config = Gemma3nTextConfig(num_hidden_layers=2, num_kv_shared_layers=0, layer_types=None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    prunable = Prunable(Decoder(model))
    named = {name.rpartition(".")[2] for name in prunable.reasons}
    assert named == {"prediction_coefs", "correction_coefs"}

    config = FalconConfig(hidden_size=4544, num_attention_heads=71, num_hidden_layers=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # One head of keys for 71 of queries, and a class of linears that has a forward of its own.
    assert not Prunable(Decoder(model)).reasons


def test_the_model_stays_as_it_was(tmp_path: Path) -> None:
    decoder = Decoder(empty_model(Checkpoint(folder_of("big_bird", tmp_path))))
    blocks = [block.attention_type for block in decoder.blocks]  # turned by a forward of short text
    assert not Prunable(decoder).reasons
    assert [block.attention_type for block in decoder.blocks] == blocks == ["block_sparse"] * 4


@pytest.mark.slow
@pytest.mark.parametrize("order", ["two-pass", "one-pass"])
@pytest.mark.parametrize(
    "family", ["falcon_mamba", "bart", "deepseek_v4", "zamba2", "glm_moe_dsa", "jetmoe"]
)
def test_masks_are_right_as_seen_from_outside(family: str, order: str, tmp_path: Path) -> None:
    save(family, tmp_path / "dense")
    found = check(family, order, tmp_path)
    assert (found.verdict, found.why) == ("exact", "")
