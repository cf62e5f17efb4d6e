"""The pruned model as finetune holds it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import make_model

from spp_cli.adapters.attach import adapted_layers
from spp_cli.adapters.frozen import PackedWeight
from spp_cli.adapters.spp import SPP
from spp_cli.config import SppConfig
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.loading import load_model
from spp_cli.progress import Silent
from spp_cli.stages import prune
from spp_cli.stages.sparse_model import float32_logits, pruned_model
from spp_cli.stages.stage import Sources

CPU = torch.device("cpu")


def pruned(root: Path, family: str) -> Path:
    dense = make_model(family, root / "dense", torch.bfloat16)
    (root / "prune").mkdir()
    settings = {"prune": {"method": "magnitude", "sparsity": 0.75}}
    config = SppConfig.model_validate(settings)
    prune.run(config, Sources(dense, False), root / "prune", Silent())
    return root / "prune"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen3"])
@pytest.mark.parametrize("packed", [False, True])
def test_block_by_block_it_is_the_model_that_transformers_loads(family, packed, tmp_path):
    folder = pruned(tmp_path, family)
    sparse = pruned_model(folder, dtype=torch.float32, trust_remote_code=False)
    model = sparse.load(CPU, SPP(), list(sparse.linears), packed=packed)
    assert len(adapted_layers(model)) == len(sparse.linears)
    plain = load_model(Checkpoint(folder), dtype=torch.float32)
    tokens = torch.randint(3, 100, (2, 12))
    torch.testing.assert_close(float32_logits(model, tokens), float32_logits(plain, tokens))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        f"{layer}.{name}"
        for layer, module in adapted_layers(model).items()
        for name in module.adapter_parameters()
    }


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_packed_it_holds_a_third_of_the_bytes_and_no_linear_as_it_was(family, tmp_path):
    sparse = pruned_model(pruned(tmp_path, family), dtype=None, trust_remote_code=False)
    model = sparse.load(CPU, SPP(), list(sparse.linears), packed=True)
    held = dense = 0
    for name, layer in adapted_layers(model).items():
        assert isinstance(layer.base, PackedWeight)
        assert sparse.linears[name].weight.is_meta
        held += sum(part.nbytes for part in layer.base.state_dict().values())
        dense += layer.out_features * layer.in_features * 2
    assert held <= 0.33 * dense
