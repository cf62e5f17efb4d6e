"""A model read block by block computes what ``from_pretrained`` computes, however it is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import change_config, make_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from spp_cli.errors import ModelError
from spp_cli.models.checkpoint import INDEX, SINGLE, WEIGHTS_KEY, Checkpoint
from spp_cli.models.loading import load_model
from spp_cli.models.streaming import StreamedModel, open_model

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
Tensors = dict[str, Tensor]
Quirk = Callable[[Path, Tensors], Tensors | None]


def streamed_logits(folder: Path, ids: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    source = open_model(Checkpoint(folder), dtype=dtype, trust_remote_code=False)
    assert isinstance(source, StreamedModel)
    cpu = torch.device("cpu")
    for index in range(len(source.decoder.blocks)):
        source.load(index, cpu)
    source.place_shell(cpu)
    source.place_head(cpu)
    return source.model(ids).logits


def tie(folder: Path, tensors: Tensors) -> None:
    change_config(folder, tie_word_embeddings=True)


def tie_and_keep_the_embedding(folder: Path, tensors: Tensors) -> Tensors:
    change_config(folder, tie_word_embeddings=True)
    return {name: tensor for name, tensor in tensors.items() if name != HEAD}


def tie_and_keep_the_head(folder: Path, tensors: Tensors) -> Tensors:
    change_config(folder, tie_word_embeddings=True)
    return {name: tensor for name, tensor in tensors.items() if name != EMBEDDING}


def tie_what_is_equal(folder: Path, tensors: Tensors) -> Tensors:
    change_config(folder, tie_word_embeddings=True)
    return {**tensors, HEAD: tensors[EMBEDDING].clone()}


def tie_in_another_type(folder: Path, tensors: Tensors) -> Tensors:
    change_config(folder, tie_word_embeddings=True)
    return {**tensors, HEAD: tensors[EMBEDDING].half()}


def without_prefix(folder: Path, tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def tied_without_prefix(folder: Path, tensors: Tensors) -> Tensors:
    return without_prefix(folder, tie_and_keep_the_embedding(folder, tensors))


def own_head_without_prefix(folder: Path, tensors: Tensors) -> Tensors:
    change_config(folder, tie_word_embeddings=True)
    return without_prefix(folder, tensors)


def twice_under_two_names(folder: Path, tensors: Tensors) -> Tensors:
    bare = (NORM, EMBEDDING, "model.layers.0.mlp.up_proj.weight")
    return tensors | {name.removeprefix("model."): 3 * tensors[name] for name in bare}


def with_strangers(folder: Path, tensors: Tensors) -> Tensors:
    inv_freq = "model.layers.0.self_attn.rotary_emb.inv_freq"
    return {**tensors, inv_freq: torch.ones(8), "steps": torch.tensor(3)}


def of_mixed_types(folder: Path, tensors: Tensors) -> Tensors:
    change_config(folder, dtype=None)
    cast = {name: tensor for name, tensor in tensors.items() if "mlp" in name}
    return tensors | {name: tensor.to(torch.bfloat16) for name, tensor in cast.items()}


def sharded(folder: Path, tensors: Tensors) -> None:
    """Two shards that share a name, and an index that lacks one tensor and misplaces another."""
    first = dict(list(tensors.items())[:9])
    second = {name: tensor for name, tensor in tensors.items() if name not in first}
    shared = next(iter(second))
    save_file({**first, shared: 5 * second[shared]}, folder / "a.safetensors", {"format": "pt"})
    save_file(second, folder / "b.safetensors", {"format": "pt"})
    homes = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
    homes.pop(next(iter(first)))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    (folder / SINGLE).unlink()


def beside_an_old_index(folder: Path, tensors: Tensors) -> None:
    sharded(folder, {name: 2 * tensor for name, tensor in tensors.items()})
    save_file(tensors, folder / SINGLE, {"format": "pt"})


def under_a_name_of_the_config(folder: Path, tensors: Tensors) -> None:
    change_config(folder, **{WEIGHTS_KEY: "other.safetensors"})
    other = {name: 2 * tensor for name, tensor in tensors.items()}
    save_file(other, folder / "other.safetensors", {"format": "pt"})


def under_an_index_of_the_config(folder: Path, tensors: Tensors) -> None:
    sharded(folder, tensors)
    (folder / INDEX).rename(folder / "own.safetensors.index.json")
    change_config(folder, **{WEIGHTS_KEY: "own.safetensors.index.json"})
    save_file({NORM: tensors[NORM]}, folder / SINGLE, {"format": "pt"})


QUIRKS: list[Quirk] = [
    tie, tie_and_keep_the_embedding, tie_and_keep_the_head, tie_what_is_equal, tie_in_another_type,
    without_prefix, tied_without_prefix, own_head_without_prefix, twice_under_two_names,
    with_strangers, of_mixed_types, sharded, beside_an_old_index, under_a_name_of_the_config,
    under_an_index_of_the_config,
]  # fmt: skip


def quirky(quirk: Quirk, folder: Path, family: str = "llama") -> Path:
    make_model(family, folder)
    # Weights far from zero, so that no quirk is lost in rounding.
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_file(folder / SINGLE).items()
    }
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    if (changed := quirk(folder, tensors)) is not None:
        save_file(changed, folder / SINGLE, {"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [None, torch.float32], ids=["auto", "float32"])
@pytest.mark.parametrize("quirk", QUIRKS)
def test_streamed_logits_are_those_of_from_pretrained(quirk, dtype, tmp_path):
    folder = quirky(quirk, tmp_path / "model")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto")(ids).logits
        assert torch.equal(streamed_logits(folder, ids, dtype), expected)
        assert torch.equal(load_model(Checkpoint(folder), dtype=dtype)(ids).logits, expected)


@pytest.mark.parametrize("family", ["gpt2", "opt", "cohere"])
def test_the_same_of_families_with_other_names_whose_head_has_its_own_weights(family, tmp_path):
    def own_head(folder: Path, tensors: Tensors) -> Tensors:
        assert HEAD not in tensors  # these families tie unless they are told not to
        (embedding,) = (
            tensor
            for name, tensor in tensors.items()
            if name.endswith(("embed_tokens.weight", "wte.weight"))
        )
        return {**tensors, HEAD: embedding.flip(0).contiguous()}

    folder = quirky(own_head, tmp_path / "model", family)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        assert torch.equal(streamed_logits(folder, ids), expected)


def a_missing_head(folder: Path, tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != HEAD}


def a_padded_embedding(folder: Path, tensors: Tensors) -> Tensors:
    return {**tensors, EMBEDDING: torch.cat([tensors[EMBEDDING]] * 2)}


def a_padded_head(folder: Path, tensors: Tensors) -> Tensors:
    return {**tensors, HEAD: torch.cat([tensors[HEAD]] * 2)}


@pytest.mark.parametrize(
    ("quirk", "says"),
    [
        (a_missing_head, r"1 weights that config\.json asks for are missing, the first is lm_head"),
        (a_padded_embedding, r"embed_tokens\.weight is \(256, 64\), and config\.json asks for"),
        (a_padded_head, r"lm_head\.weight is \(256, 64\), and config\.json asks for \(128, 64\)"),
    ],
)
def test_what_from_pretrained_would_make_up_is_refused_before_any_work(quirk, says, tmp_path):
    folder = quirky(quirk, tmp_path / "model")
    with pytest.raises(ModelError, match=says):
        open_model(Checkpoint(folder), dtype=None, trust_remote_code=False)
