"""An archive holds a model without its zeros, and unpacking brings back every bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spp_cli.errors import ConfigError, ModelError
from spp_cli.models.tensor_file import layout_of, write_tensors
from spp_cli.sparsity.archive import pack_folder, unpack_folder
from spp_cli.sparsity.masks import FILE_NAME, pack, save_masks

TEMPLATES = "additional_chat_templates"


def model_folder(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a model file as spp writes it, with masks: a linear, a sparse table, a dense one."""
    torch.manual_seed(0)
    folder.mkdir()
    keep = torch.rand(64, 96) < 0.25
    weight = torch.randn(64, 96).to(dtype).masked_fill(~keep, 0)
    weight[keep & (torch.rand(64, 96) < 0.05)] = -0.0
    table = torch.randn(50, 40).to(dtype)
    table[torch.rand(50, 40) < 0.6] = 0.0
    tensors = {
        "a.proj.weight": weight,
        "a.proj.bias": torch.zeros(64, dtype=dtype),
        "sparse.weight": table,
        "dense.weight": torch.randn(33, 7),
        "count": torch.tensor(3),
    }
    layouts = {name: layout_of(tensor) for name, tensor in tensors.items()}
    write_tensors(folder / "model.safetensors", layouts, tensors.__getitem__, {"format": "pt"})
    save_masks(folder, {"a.proj": pack(keep)}, {"a.proj": (64, 96)})
    (folder / "config.json").write_text("{}")
    (folder / TEMPLATES).mkdir()
    (folder / TEMPLATES / "rag.jinja").write_text("{{ a }}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unpacking_brings_back_every_file_byte_for_byte(tmp_path, dtype):
    source = model_folder(tmp_path / "model", dtype)
    before, after = pack_folder(source, tmp_path / "archive")
    assert after < before
    unpack_folder(tmp_path / "archive", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)


def test_what_keeps_its_mask_needs_no_bits_of_its_own(tmp_path):
    source = model_folder(tmp_path / "model")
    pack_folder(source, tmp_path / "archive")
    packed = load_file(tmp_path / "archive" / "model.packed.safetensors")
    assert "a.proj.weight#values" in packed
    assert "a.proj.weight#bits" not in packed
    assert "sparse.weight#bits" in packed
    assert "dense.weight" in packed


def test_a_file_of_another_writer_comes_back_tensor_for_tensor(tmp_path):
    (tmp_path / "model").mkdir()
    tensors = {"z.weight": torch.eye(40), "a.weight": torch.eye(30).half()}
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    pack_folder(tmp_path / "model", tmp_path / "archive")
    unpack_folder(tmp_path / "archive", tmp_path / "back")
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_an_archive_that_was_changed_is_refused_and_leaves_nothing(tmp_path):
    pack_folder(model_folder(tmp_path / "model"), tmp_path / "archive")
    path = tmp_path / "archive" / "model.packed.safetensors"
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little") + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not what was packed"):
        unpack_folder(tmp_path / "archive", tmp_path / "back")
    path.write_bytes(content[:-100])
    with pytest.raises(ModelError, match="damaged"):
        unpack_folder(tmp_path / "archive", tmp_path / "back")
    (tmp_path / "archive" / FILE_NAME).unlink()
    with pytest.raises(ModelError):
        unpack_folder(tmp_path / "archive", tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "model"]


def test_neither_a_plain_folder_nor_a_target_that_is_there_will_do(tmp_path):
    source = model_folder(tmp_path / "model")
    with pytest.raises(ModelError, match="is no archive"):
        unpack_folder(source, tmp_path / "back")
    pack_folder(source, tmp_path / "archive")
    with pytest.raises(ConfigError, match="is there already"):
        unpack_folder(tmp_path / "archive", source)


def test_what_is_no_part_of_the_model_stays_behind(tmp_path):
    source = model_folder(tmp_path / "model")
    (source / "manifest.json").write_text("{}")
    (source / ".resume").mkdir()
    pack_folder(source, tmp_path / "archive")
    names = {path.name for path in (tmp_path / "archive").iterdir()}
    assert names == {"config.json", FILE_NAME, "model.packed.safetensors", TEMPLATES}
