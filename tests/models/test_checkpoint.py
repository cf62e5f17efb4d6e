"""A checkpoint folder gives every tensor as it is stored, however the folder is laid out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import make_model
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from spp_cli.errors import ModelError
from spp_cli.models.checkpoint import (
    INDEX,
    SINGLE,
    Checkpoint,
    copy_companions,
    is_demo_family,
    locate,
    tokenizer_files,
)

names = st.text("abc.0", min_size=1, max_size=6)


def shard(folder: Path, shards: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Write a folder with these files of tensors, an index and an empty config.json."""
    (folder / "config.json").write_text("{}")
    for name, tensors in shards.items():
        save_file(dict(tensors), folder / name)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@given(homes=st.dictionaries(names, st.integers(0, 3), min_size=1), seed=st.integers(0, 99))
def test_however_tensors_are_spread_over_files_each_is_read_as_it_was(
    homes: dict[str, int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch.manual_seed(seed)
    folder = tmp_path_factory.mktemp("model")
    tensors = {name: torch.randn(seed % 3, 2).to(torch.bfloat16) for name in homes}
    shards: dict[str, dict[str, Tensor]] = {}
    for name, number in homes.items():
        shards.setdefault(f"part-{number}.safetensors", {})[name] = tensors[name]
    checkpoint = Checkpoint(shard(folder, shards))
    assert checkpoint.locations.keys() == tensors.keys()
    assert checkpoint.weight_files == sorted(shards)
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == torch.bfloat16
        assert checkpoint.locations[name].name == f"part-{homes[name]}.safetensors"
    assert checkpoint.size == sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_shards_that_transformers_wrote_hold_what_its_single_file_holds(tmp_path: Path) -> None:
    one = Checkpoint(make_model("llama", tmp_path / "one"))
    model = AutoModelForCausalLM.from_pretrained(one.folder)
    model.save_pretrained(tmp_path / "many", max_shard_size="100KB")
    many = Checkpoint(tmp_path / "many")
    assert len(many.weight_files) > 2
    assert one.weight_files == [SINGLE]
    assert one.locations.keys() == many.locations.keys()
    assert all(torch.equal(one.tensor(name), many.tensor(name)) for name in one.locations)


def test_companions_are_copied_byte_for_byte_and_weights_are_not(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    wanted = {
        "config.json": b'{\r\n  "dtype": "float32"}',
        "generation_config.json": b"{}\n\n",
        "tokenizer.json": "{…}".encode(),
        "tokenizer_config.json": b"{}",
        "tokenizer.model": bytes(range(256)),
        "special_tokens_map.json": b"{}",
        "tekken.json": b"{}",
        "own.tiktoken": b"YQ== 0",
        "vocab.json": b"{}",
        "merges.txt": b"a b\r\n",
        "chat_template.jinja": b"{{ a }}",
        "modeling_own.py": b"pass",
        "preprocessor_config.json": b"{}",
        "processor_config.json": b"{}",
        "encoder.json": b"{}",
        "source.spm": b"\0",
        "words": b"of a tokenizer with its own code",
        "additional_chat_templates/rag.jinja": b"{{ b }}",
        "qformer_tokenizer/tokenizer.json": b"{}",
        "LICENSE": b"terms",
    }
    left = (
        SINGLE, "keep_masks.safetensors", "pytorch_model.bin", "README.md", "spp_sparsity.json",
        INDEX, "consolidated.safetensors", "a.gguf", "manifest.json", "config.yaml", "log.jsonl",
        "adapter_config.json", "trainer_state.json", "params.json", ".gitattributes", "picture.png",
        "packed/tokenizer.json", "original/tokenizer.model", "checkpoint-5/tokenizer.json",
        "draft/config.json", "draft/tokenizer.json", "runs/tokenizer.json", "notes/a.txt",
    )  # fmt: skip
    for name, content in {**wanted, **dict.fromkeys(left, b"x")}.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(content)
    names = copy_companions(source, target)
    assert sorted(names) == sorted(wanted)
    found = {path for path in target.rglob("*") if path.is_file()}
    copied = {path.relative_to(target).as_posix(): path.read_bytes() for path in found}
    assert copied == wanted


def test_the_digest_is_over_what_decides_and_over_no_readme_licence_or_processor(
    tmp_path: Path,
) -> None:
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "own.py"):
        (tmp_path / name).write_text("{}")
    save_file({"a": torch.zeros(1)}, tmp_path / SINGLE)
    first = ["chat_template.jinja", "config.json", SINGLE, "own.py", "tokenizer.json"]
    assert Checkpoint(tmp_path).deciding_files == first  # as it always was
    for name in ("README.md", "LICENSE", "preprocessor_config.json", "manifest.json", "a.png"):
        (tmp_path / name).write_text("{}")
    assert Checkpoint(tmp_path).deciding_files == first
    assert tokenizer_files(tmp_path) == ["chat_template.jinja", "own.py", "tokenizer.json"]
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/rag.jinja").write_text("{{ b }}")
    assert Checkpoint(tmp_path).deciding_files == ["additional_chat_templates/rag.jinja", *first]


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_another_type_changes_the_one_key_that_names_it(key: str, tmp_path: Path) -> None:
    config = {"model_type": "llama", key: "float32", "rope": {"theta": 1e4}, "name": "é"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "target").mkdir()
    copy_companions(tmp_path, tmp_path / "target", "bfloat16")
    changed = json.loads((tmp_path / "target/config.json").read_text())
    assert changed == {**config, key: "bfloat16"}
    assert list(changed) == list(config)


def test_the_type_that_config_json_names_already_changes_nothing(tmp_path: Path) -> None:
    content = b'{"dtype":   "bfloat16"}'
    (tmp_path / "config.json").write_bytes(content)
    (tmp_path / "target").mkdir()
    copy_companions(tmp_path, tmp_path / "target", "bfloat16")
    assert (tmp_path / "target/config.json").read_bytes() == content


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({}, r"has no weight_map; it is corrupt"),
        ({"weight_map": []}, r"has no weight_map; it is corrupt"),
        ({"weight_map": None}, r"has no weight_map; it is corrupt"),
        ([], r"does not hold a JSON object; it is corrupt"),
        ({"weight_map": {"a": 7}}, r"7 is missing, model\.safetensors\.index\.json names it"),
        ({"weight_map": {"a": "b.safetensors"}}, r"b\.safetensors is missing, .* names it"),
        ({"weight_map": {"a": "../b.safetensors"}}, r"names '\.\./b.*outside of its folder"),
        ({"weight_map": {"a": "x/../../b.safetensors"}}, r"names 'x/\.\./\.\./b.*outside"),
        ({"weight_map": {"a": "/b.safetensors"}}, r"names '/b\.safetensors', .*outside"),
    ],
)
def test_an_index_that_is_wrong_is_said_to_be(index: object, says: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "b.safetensors")
    (model := tmp_path / "model").mkdir()
    (model / "config.json").write_text("{}")
    (model / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=says):
        Checkpoint(model)
    if "outside" in says:  # whoever reads no weights refuses it, too
        with pytest.raises(ModelError, match=says):
            Checkpoint(model, weights_needed=False)


def test_what_an_index_names_is_read_and_named_wherever_it_is_in_the_folder(tmp_path: Path) -> None:
    for value, path in enumerate(("part.safetensors", "below/part.safetensors")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        save_file({"a": torch.tensor([value])}, tmp_path / path)
    (tmp_path / "linked.safetensors").symlink_to("below/part.safetensors")  # as in the hub's cache
    for name in ("below/part.safetensors", "linked.safetensors"):
        shard(tmp_path, {})
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        checkpoint = Checkpoint(tmp_path)
        assert checkpoint.weight_files == [name]
        assert checkpoint.tensor("a").item() == 1
        assert Checkpoint(tmp_path, weights_needed=False).weight_files == [name]


def test_a_folder_is_refused_for_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: no such folder"):
        Checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="file: a file, not a folder"):
        Checkpoint(tmp_path / "file")
    with pytest.raises(ModelError, match=r"has no config\.json; it is not a model folder"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read as JSON"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no model\.safetensors and no model\.safetens"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        Checkpoint(tmp_path)
    (tmp_path / SINGLE).touch()
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated or corrupt"):
        Checkpoint(tmp_path)


def test_weights_that_vanish_after_they_were_opened_are_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model("llama", tmp_path / "model"))
    (tmp_path / "model" / SINGLE).unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot read lm_head\.weight"):
        checkpoint.tensor("lm_head.weight")


def test_a_path_is_a_folder_before_it_is_an_id_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "owner/name").mkdir(parents=True)
    assert locate("owner/name") == (Path("owner/name"), False)
    assert locate("~/owner") == (tmp_path / "owner", False)
    for path in ("./nowhere", "/nowhere/at/all", "../nowhere"):  # no id looks like this
        assert locate(path) == (Path(path), False)


def test_what_has_the_embedded_tokenizer_is_of_the_embedded_family(tmp_path: Path) -> None:
    folder, is_embedded = locate("demo")
    assert is_embedded
    assert is_demo_family(folder)
    assert not is_demo_family(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert not is_demo_family(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    assert is_demo_family(tmp_path)


def test_the_embedded_model_is_read_as_the_library_reads_it(demo_folder: Path) -> None:
    checkpoint, expected = Checkpoint(demo_folder), load_file(demo_folder / SINGLE)
    assert checkpoint.locations.keys() == expected.keys()
    assert all(torch.equal(checkpoint.tensor(name), expected[name]) for name in expected)
    assert checkpoint.companion_files == [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
