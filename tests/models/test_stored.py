"""What a checkpoint holds of each tensor is found as transformers finds it, whatever the names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, make_model, store_fused
from safetensors.torch import load_file, save_file
from tiny_families import save

from spp_cli.errors import ModelError
from spp_cli.models.checkpoint import SINGLE, Checkpoint
from spp_cli.models.loading import empty_model, load_model
from spp_cli.models.stored import StoredTensors

EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


def open_stored(folder: Path) -> StoredTensors:
    checkpoint = Checkpoint(folder)
    return StoredTensors(checkpoint, empty_model(checkpoint))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_reads_as_transformers_loads_it(family, tmp_path):
    folder = make_model(family, tmp_path / "model", torch.bfloat16)
    stored = open_stored(folder)
    for name, parameter in load_model(stored.checkpoint).named_parameters():
        assert torch.equal(stored.read(name).to(parameter.dtype), parameter), name
        assert stored.shape(name) == tuple(parameter.shape)
        assert stored.dtype(name) == torch.bfloat16


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_experts_in_one_stored_tensor_read_the_same_as_one_by_one(family, tmp_path):
    folder = make_model(family, tmp_path / "model", torch.bfloat16)
    before = open_stored(folder)
    tensors = {name: before.read(name) for name in before.checkpoint.locations if "proj" in name}
    tensors |= {EXPERT: before.read(EXPERT)}
    store_fused(folder)
    after = open_stored(folder)
    assert after.part(EXPERT).expert == 2
    assert before.part(EXPERT).expert is None
    for name, tensor in tensors.items():
        assert torch.equal(after.read(name), tensor)


def test_names_of_a_checkpoint_and_of_the_model_lead_to_each_other(tmp_path):
    stored = open_stored(make_model("mixtral", tmp_path / "model"))
    of_expert = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    assert stored.part(EXPERT).name == of_expert
    assert stored.model_name(of_expert) == "model.layers.1.mlp.experts.gate_up_proj"
    assert stored.part("model.layers.0.mlp.gate.weight").name == (
        "model.layers.0.block_sparse_moe.gate.weight"
    )
    assert stored.model_name("model.layers.9.unknown") == "model.layers.9.unknown"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "granitemoe"])
def test_a_checkpoint_of_the_base_model_alone_lacks_only_its_prefix(family, tmp_path):
    folder = make_model(family, tmp_path / "model")
    whole = open_stored(folder)
    prefix = f"{empty_model(whole.checkpoint).base_model_prefix}."
    names = [name for name, _ in load_model(whole.checkpoint).base_model.named_parameters()]
    before = {name: whole.read(prefix + name) for name in names}
    tensors = load_file(folder / SINGLE)
    save_file({k.removeprefix(prefix): v for k, v in tensors.items()}, folder / SINGLE)
    bare = open_stored(folder)
    for name in names:
        assert not bare.part(prefix + name).name.startswith(prefix)
        assert torch.equal(bare.read(prefix + name), before[name])


@pytest.mark.parametrize(
    ("family", "name", "lost", "says"),
    [
        ("llama", "model.norm.weight", "model.norm.weight", r"has no tensor model\.norm\.weight"),
        ("mixtral", EXPERT, "experts.1.w3", r"has 3 experts in .*1\.block.*\.0\.w3\..* asks for 4"),
        (
            "mixtral",
            EXPERT,
            "layers.1.block_sparse_moe.experts",
            r"no tensor .*gate_up_proj, w",
        ),
    ],
)
def test_what_is_not_there_is_named(family, name, lost, says, tmp_path):
    folder = make_model(family, tmp_path / "model")
    tensors = load_file(folder / SINGLE)
    save_file({key: value for key, value in tensors.items() if lost not in key}, folder / SINGLE)
    with pytest.raises(ModelError, match=says):
        open_stored(folder).part(name)


def test_another_number_of_experts_in_one_tensor_is_refused(tmp_path):
    folder = make_model("granitemoe", tmp_path / "model")
    tensors = load_file(folder / SINGLE)
    name = "model.layers.1.block_sparse_moe.input_linear.weight"
    save_file(tensors | {name: tensors[name][:3].clone()}, folder / SINGLE)
    with pytest.raises(ModelError, match=r"has 3 experts in .*input_linear.* asks for 4"):
        open_stored(folder).read("model.layers.1.block_sparse_moe.experts.0.up_proj.weight")


def test_tensors_mixed_in_an_unknown_way_are_told(tmp_path, monkeypatch):
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import Transpose

    def mapping(model):
        conversions = get_model_conversion_mapping(model)
        for conversion in conversions:
            if getattr(conversion, "operations", None):
                conversion.operations.append(Transpose(1, 2))
        return conversions

    monkeypatch.setattr("spp_cli.models.stored.get_model_conversion_mapping", mapping)
    stored = open_stored(make_model("mixtral", tmp_path / "model"))
    with pytest.raises(ModelError, match=r"makes .*gate_up_proj of .*w1.* in a way that spp does"):
        stored.part(EXPERT)
    assert stored.part("model.norm.weight").name == "model.norm.weight"


def test_what_is_split_into_several_layers_is_refused_by_a_name_to_leave_out(tmp_path):
    save("hrm_text", tmp_path / "model")  # which stores q, k, v and a gate in one tensor
    stored = open_stored(tmp_path / "model")
    for name in ("q_proj", "gate_proj"):
        says = rf"gqkv_proj\.weight in a way .*Leave model\.H_module\.layers\.\*\..*{name} out with"
        with pytest.raises(ModelError, match=says):
            stored.part(f"model.H_module.layers.0.self_attn.{name}.weight")
