"""What the model of config.json does not use is named, or refused if it should have been used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import change_config, make_model
from safetensors.torch import load_file, save_file

from spp_cli.errors import ModelError
from spp_cli.models.checkpoint import SINGLE, Checkpoint
from spp_cli.models.loading import empty_model
from spp_cli.models.stored import StoredTensors
from spp_cli.models.unused import check_unused


def checked(folder: Path) -> str | None:
    checkpoint = Checkpoint(folder)
    model = empty_model(checkpoint)
    return check_unused(StoredTensors(checkpoint, model), model)


def add(folder: Path, *names: str) -> Path:
    tensors = load_file(folder / SINGLE) | {name: torch.ones(4) for name in names}
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "deepseek_v3", "gemma3"])
def test_a_model_that_is_used_whole_has_no_warning(family, tmp_path):
    assert checked(make_model(family, tmp_path / "model")) is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_more_blocks_than_config_json_counts_are_refused(family, tmp_path):
    folder = make_model(family, tmp_path / "model")
    change_config(folder, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 1})
    says = r"the weights have a block [\w.]+\.1, and config\.json describes a model of 1\."
    with pytest.raises(ModelError, match=says):
        checked(folder)


def test_blocks_for_further_tokens_are_named(tmp_path):
    block = ("eh_proj.weight", "enorm.weight", "self_attn.q_proj.weight")
    folder = make_model("llama", tmp_path / "model")
    said = checked(add(folder, *(f"model.layers.2.{name}" for name in block)))
    assert said
    assert said.endswith("neither used nor pruned, and stay as they are: model.layers.2.*")


def test_other_strays_are_named_by_kind(tmp_path):
    names = [f"model.layers.{number}.self_attn.q_proj.bias" for number in (0, 1)]
    names += [f"visual.blocks.{number}.{part}" for number in (0, 1) for part in "abc"]
    said = checked(add(make_model("llama", tmp_path / "model"), *names))
    assert said
    assert "are: model.layers.*.self_attn.q_proj.bias, visual.blocks.*.a, visual.blocks.*.b" in said
    assert said.endswith(" and 1 other kind")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("gpt2", "transformer.h.0.attn.bias"),
        ("deepseek_v3", "model.layers.61.self_attn.q_proj.weight"),
    ],
)
def test_what_a_family_is_known_to_leave_out_is_no_stray(family, name, tmp_path):
    assert checked(add(make_model(family, tmp_path / "model"), name)) is None
