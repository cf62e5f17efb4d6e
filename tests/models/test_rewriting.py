"""A checkpoint that is written anew holds what it held, but for what was replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, make_model
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from spp_cli.errors import ModelError
from spp_cli.models import rewriting
from spp_cli.models.checkpoint import INDEX, SINGLE, Checkpoint, copy_companions
from spp_cli.models.decoder import Decoder
from spp_cli.models.loading import empty_model
from spp_cli.models.rewriting import CheckpointRewriter
from spp_cli.models.stored import StoredTensors

BLOCKS = 2


def rewritten(
    source: Checkpoint, target: Path, replaced: dict[str, torch.Tensor] | None = None
) -> Checkpoint:
    """Write ``source`` into ``target``, its last block with ``replaced``; return what is there."""
    target.mkdir()
    model = empty_model(source)
    rewriter = CheckpointRewriter(StoredTensors(source, model), target, Decoder(model))
    for block in range(BLOCKS):
        rewriter.begin(block, (replaced or {}) if block == BLOCKS - 1 else {}).finish()
    rewriter.finish()
    copy_companions(source.folder, target)
    return Checkpoint(target)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("join_below", [0, 1 << 30], ids=["shards", "one file"])
def test_what_is_not_replaced_goes_on_bit_for_bit(
    family: str, join_below: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriting, "_JOIN_BELOW", join_below)
    source = Checkpoint(make_model(family, tmp_path / "source", torch.bfloat16))
    target = rewritten(source, tmp_path / "target")
    assert len(target.weight_files) == (1 if join_below else BLOCKS + 1)
    assert target.locations.keys() == source.locations.keys()
    for name in source.locations:
        assert target.dtype(name) == torch.bfloat16
        assert torch.equal(target.tensor(name), source.tensor(name))
    others = {path.name for path in target.folder.iterdir()} - {*target.weight_files, INDEX}
    assert others == set(source.companion_files)  # and nothing half written


def test_what_is_replaced_is_replaced_and_stands_with_its_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriting, "_JOIN_BELOW", 0)
    source = Checkpoint(make_model("gpt2", tmp_path / "source"))
    name = next(name for name in source.locations if name.endswith("h.1.mlp.c_fc.weight"))
    target = rewritten(source, tmp_path / "target", {name: torch.ones(source.shape(name))})
    assert torch.equal(target.tensor(name), torch.ones(source.shape(name)))
    assert target.locations[name].name == "model-00002-of-00003.safetensors"


@pytest.mark.parametrize("family", ["llama", "granitemoe"])
def test_nothing_infinite_is_written(family: str, tmp_path: Path) -> None:
    source = Checkpoint(make_model(family, tmp_path / "source"))
    linear = Decoder(empty_model(source)).all_linears()[-1]
    weight = torch.full(linear.parameter.shape, torch.inf)
    with pytest.raises(ModelError, match="NaN or infinity"):
        rewritten(source, tmp_path / "target", {f"{linear.name}.weight": weight})
    assert not list((tmp_path / "target").glob("*00002*"))


@pytest.mark.parametrize("asked", [torch.bfloat16, torch.float16])
def test_what_is_computed_in_float32_keeps_its_type_and_the_rest_is_cast(
    asked: torch.dtype, tmp_path: Path
) -> None:
    source = Checkpoint(make_model("deepseek_v3", tmp_path / "source"))
    model = empty_model(source)
    (tmp_path / "target").mkdir()
    rewriter = CheckpointRewriter(
        StoredTensors(source, model), tmp_path / "target", Decoder(model), asked
    )
    for block in range(BLOCKS):
        rewriter.begin(block, {}).finish()
    rewriter.finish()
    copy_companions(source.folder, tmp_path / "target", str(asked).removeprefix("torch."))
    kept = {name: each.dtype for name, each in load_file(tmp_path / "target" / SINGLE).items()}
    as_loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype="auto").state_dict()
    assert all(as_loaded[name].dtype == kept[name] for name in kept.keys() & as_loaded.keys())
    assert kept["model.layers.1.mlp.gate.e_score_correction_bias"] == torch.float32
    assert kept["model.norm.weight"] == asked


@pytest.mark.parametrize("family", ["mixtral", "granitemoe", "gpt_oss"])
def test_one_projection_of_one_expert_is_replaced_and_no_other_number(
    family: str, tmp_path: Path
) -> None:
    source = Checkpoint(make_model(family, tmp_path / "source"))
    stored = StoredTensors(source, empty_model(source))
    (name,) = (
        name
        for name, _ in empty_model(source).named_parameters()
        if name.endswith("layers.1.mlp.experts.2.up_proj.weight")
        or name.endswith("layers.1.block_sparse_moe.experts.2.up_proj.weight")
    )
    before = stored.read(name)
    target = rewritten(source, tmp_path / "target", {name: torch.full_like(before, 7.0)})
    assert (StoredTensors(target, empty_model(target)).read(name) == 7.0).all()
    changed = 0
    for key in source.locations:
        changed += int((source.tensor(key) != target.tensor(key)).sum())
    assert changed == before.numel()


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "llama"])
def test_a_checkpoint_without_the_prefix_of_the_base_model_is_cut_the_same(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriting, "_JOIN_BELOW", 0)
    source = Checkpoint(make_model(family, tmp_path / "source"))
    prefix = f"{empty_model(source).base_model_prefix}."
    tensors = load_file(source.folder / SINGLE)
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    assert bare.keys() != tensors.keys()
    with_prefix = rewritten(source, tmp_path / "with")
    save_file(bare, source.folder / SINGLE)
    without = rewritten(Checkpoint(source.folder), tmp_path / "without")
    for name in tensors:
        shard = without.locations[name.removeprefix(prefix)].name
        assert shard == with_prefix.locations[name].name


@given(
    start=st.sampled_from(["model.layers", "layers"]),
    block=st.integers(0, 200),
    rest=st.text("abc.", min_size=1),
)
def test_a_block_is_told_by_its_whole_number(start: str, block: int, rest: str) -> None:
    starts = ("model.layers", "layers")
    home = rewriting._block_of(f"{start}.{block}.{rest}", starts, 100)
    assert home == min(block, 100)  # what a model has no block for goes with the shell
    assert rewriting._block_of(f"{start}.a{block}.{rest}", starts, 100) == 100
    assert rewriting._block_of(f"other_{start}.{block}.{rest}", starts, 100) == 100
