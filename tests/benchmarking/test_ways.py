"""Ways to hold weights: what they store, that they compute the same, and why one is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.sparse import SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass
from transformers import PreTrainedModel

from spp_cli.benchmarking.ways import WAYS, Hindered, hindrance, keep_masks, stored_bytes
from spp_cli.config import SppConfig
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.loading import load_model
from spp_cli.progress import Silent
from spp_cli.sparsity.masks import KeepMasks
from spp_cli.stages import prune
from spp_cli.stages.stage import Sources

CPU = torch.device("cpu")
TOKENS = torch.arange(2 * 24).view(2, 24)


@pytest.fixture
def pruned(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of pruned folders: pruned("llama", pattern="2:4") → path."""

    def make(family: str = "llama", **settings: object) -> Path:
        target = tmp_path / f"pruned-{family}"
        target.mkdir()
        config = SppConfig.model_validate({"prune": {"method": "magnitude", **settings}})
        prune.run(config, Sources(tiny_model(family), False), target, Silent())
        return target

    return make


def loaded(folder: Path) -> PreTrainedModel:
    return load_model(Checkpoint(folder)).requires_grad_(False)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("family", ["llama", "opt", "mixtral", "gpt2"])
def test_packed_computes_the_same_to_the_bit(pruned, family):
    folder = pruned(family, sparsity=0.75)
    dense, packed = loaded(folder), loaded(folder)
    keep = keep_masks(packed, KeepMasks(folder))
    held = WAYS["packed"](packed, keep, CPU)
    assert len(held) == len(keep) == len(KeepMasks(folder))
    assert torch.equal(logits(packed), logits(dense))


def test_packed_takes_the_values_that_stay_and_one_bit_a_weight(pruned):
    folder = pruned(sparsity=0.75)
    model = loaded(folder)
    keep = keep_masks(model, KeepMasks(folder))
    size = sum(mask.numel() for mask in keep.values())
    assert stored_bytes(WAYS["dense"](model, keep, CPU)) == 4 * size
    assert stored_bytes(WAYS["packed"](model, keep, CPU)) == 4 * size // 4 + size // 8
    names = {name for name, _ in model.named_parameters()}
    assert not any(f"{name}.weight" in names for name in keep)


def test_without_masks_the_zeros_count_and_dense_linears_are_left_alone(pruned):
    folder = pruned(sparsity=0.5, exclude=["*.down_proj"])
    model = loaded(folder)
    found, recorded = keep_masks(model, {}), KeepMasks(folder)
    assert found.keys() == set(recorded)
    assert all(torch.equal(mask, recorded[name]) for name, mask in found.items())


def test_a_dense_model_has_nothing_to_hold(tiny_model):
    assert keep_masks(loaded(tiny_model()), {}) == {}


def test_two_of_four_needs_a_gpu_that_has_it(monkeypatch):
    assert hindrance("packed", CPU) == ""
    assert hindrance("2:4", CPU) == "torch computes it on GPUs of NVIDIA only, and this is cpu"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    reason = hindrance("2:4", torch.device("cuda"))
    assert reason == "the GPU has compute capability 7.5, and 2:4 needs 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert hindrance("2:4", torch.device("cuda")) == ""


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("llama", {"sparsity": 0.5}, "the model is not 2:4: "),
        ("gpt2", {"pattern": "2:4"}, "transformer.h.0.attn.c_attn is stored transposed"),
        ("llama", {"pattern": "2:4"}, "model.layers.0.self_attn.q_proj: Error original_tensor"),
    ],
)
def test_a_model_that_cannot_be_held_so_says_why(pruned, family, settings, reason):
    folder = pruned(family, **settings)
    model = loaded(folder)
    with pytest.raises(Hindered) as told:
        WAYS["2:4"](model, keep_masks(model, KeepMasks(folder)), CPU)
    assert str(told.value).startswith(reason)


def test_the_bytes_of_torchs_two_of_four_are_its_values_and_where_they_go():
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0]).to(torch.float16).tile(64, 32)
    values, places = sparse_semi_structured_from_dense_cutlass(weight)
    sparse = SparseSemiStructuredTensorCUTLASS(weight.shape, values, places, None, None, None)
    module = nn.Linear(1, 1, bias=False)
    module.weight = nn.Parameter(sparse, requires_grad=False)
    assert stored_bytes([module]) == weight.numel() * 2 // 2 + weight.numel() // 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch computes 2:4 on GPUs only")
def test_two_of_four_on_a_gpu_computes_almost_the_same(pruned):
    folder = pruned(pattern="2:4")
    gpu = torch.device("cuda")
    dense = loaded(folder).to(gpu, torch.bfloat16)
    sparse = loaded(folder).to(torch.bfloat16)
    held = WAYS["2:4"](sparse, keep_masks(sparse, KeepMasks(folder)), gpu)
    assert held
    with torch.no_grad():
        found, wanted = (model(TOKENS.to(gpu)).logits for model in (sparse, dense))
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0.02)
