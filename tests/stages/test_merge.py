"""spp merge: rounded once, checked, and refused when it would break the pattern."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import pytest
import torch
from conftest import make_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import spp_cli.adapters
from spp_cli.adapters.adapter import AdapterMethod
from spp_cli.adapters.attach import save_adapter
from spp_cli.adapters.lora import LoRA
from spp_cli.adapters.spp import SPP, SPPLinear
from spp_cli.config import SppConfig
from spp_cli.errors import CheckFailed, ModelError
from spp_cli.models.checkpoint import Checkpoint, locate
from spp_cli.progress import Silent
from spp_cli.sparsity.masks import KeepMasks
from spp_cli.sparsity.verify import RECORD, verify_folder
from spp_cli.stages import merge, prune
from spp_cli.stages.sparse_model import adapted_model, float32_logits, pruned_model
from spp_cli.stages.stage import Result, Sources


class Careless(SPPLinear):
    """An adapter that adds where there was nothing."""

    def effective_weight(self, weight: torch.Tensor | None = None) -> torch.Tensor:
        return super().effective_weight(weight) + 1e-3


class Exploding(SPPLinear):
    def effective_weight(self, weight: torch.Tensor | None = None) -> torch.Tensor:
        effective = super().effective_weight(weight)
        return effective.masked_fill(effective != 0, torch.inf)


class CarelessSPP(SPP):
    name: Literal["careless"] = "careless"

    def wrap(self, weight: torch.Tensor, bias: torch.Tensor | None) -> SPPLinear:
        return Careless(weight, bias, self.r, self.scale)


class ExplodingSPP(SPP):
    name: Literal["exploding"] = "exploding"

    def wrap(self, weight: torch.Tensor, bias: torch.Tensor | None) -> SPPLinear:
        return Exploding(weight, bias, self.r, self.scale)


MORE = ("additional_chat_templates/rag.jinja", "preprocessor_config.json", "own.tiktoken")


@pytest.fixture(autouse=True)
def _broken_adapters(monkeypatch):
    for name in ("Careless", "Exploding"):
        monkeypatch.setitem(spp_cli.adapters.TABLE, name.lower(), f"{__name__}:{name}SPP")


ON_CPU = {"device": torch.device("cpu"), "dtype": torch.float32, "trust_remote_code": False}


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
def dtype(request):
    return request.param


def adapted(
    root: Path, dtype: torch.dtype = torch.float32, method: AdapterMethod | None = None
) -> Sources:
    """Return the sources of a merge: a tiny model, pruned, with an adapter that does something."""
    method = method or SPP()
    dense = make_model("llama", root / "dense", dtype)
    for file in locate("demo")[0].glob("tokenizer*"):  # it goes on, though nothing reads it here
        shutil.copy(file, dense)
    (dense / "additional_chat_templates").mkdir()
    for name in MORE:
        (dense / name).write_text(f"{{# {name} #}}")
    sources = Sources(dense, False, {"prune": root / "prune", "finetune": root / "finetune"})
    (root / "prune").mkdir()
    settings = {"prune": {"method": "magnitude", "pattern": "2:8"}}
    prune.run(SppConfig.model_validate(settings), sources, root / "prune", Silent())
    sparse = pruned_model(root / "prune", dtype=torch.float32, trust_remote_code=False)
    names = sparse.choose(("*",), ("*.0.mlp.down_proj",))
    sparse.load(torch.device("cpu"), method, names)
    torch.manual_seed(1)
    for name, parameter in sparse.model.named_parameters():
        if name.endswith((".B", ".change")):
            torch.nn.init.normal_(parameter, std=0.3)
    description = {
        "format": 1,
        "adapter": method.model_dump(mode="json"),
        "layers": names,
        "mask_digest": sparse.masks.digest,
    }
    save_adapter(sparse.model, root / "finetune", description)
    return sources


def merged(sources: Sources, target: Path) -> Result:
    target.mkdir()
    return merge.run(SppConfig(), sources, target, Silent())


def test_the_merged_model_computes_what_the_adapted_one_does(tmp_path, dtype):
    sources = adapted(tmp_path, dtype)
    metrics = merged(sources, tmp_path / "merge").metrics
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merge", dtype=torch.float32)
    tokens = torch.randint(3, 128, (2, 20))
    folders = (sources.stages["prune"], sources.stages["finetune"])
    reference = adapted_model(*folders, **ON_CPU).model
    difference = (float32_logits(model, tokens) - float32_logits(reference, tokens)).abs().max()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    assert difference < tolerance
    assert metrics["largest_logit_difference"] < tolerance


@pytest.mark.parametrize("name", [name for name in spp_cli.adapters.TABLE if name != "lora"])
def test_every_adapter_that_keeps_zeros_can_be_merged(name, tmp_path):
    settings = SppConfig.model_validate({"finetune": {"adapter": name}}).finetune
    sources = adapted(tmp_path, method=settings.adapter)
    metrics = merged(sources, tmp_path / "merge").metrics
    assert metrics["largest_logit_difference"] < 1e-5 < metrics["largest_logit"]
    assert metrics["update_lost_to_the_mask"] == 0
    assert verify_folder(tmp_path / "merge", "2:8").ok


def test_zeros_masks_config_and_what_has_no_adapter_go_on_unchanged(tmp_path, dtype):
    sources = adapted(tmp_path, dtype)
    result = merged(sources, tmp_path / "merge")
    before, after = Checkpoint(tmp_path / "prune"), Checkpoint(tmp_path / "merge")
    assert list(before.locations) == list(after.locations)
    for name in before.locations:
        old, new = before.tensor(name), after.tensor(name)
        assert old.dtype == new.dtype
        assert not new[old == 0].count_nonzero()
        is_adapted = "proj" in name and "layers.0.mlp.down_proj" not in name
        assert torch.equal(old, new) != is_adapted, name
    assert KeepMasks(tmp_path / "merge").digest == KeepMasks(tmp_path / "prune").digest
    assert result.mask_digest == KeepMasks(tmp_path / "prune").digest
    companions = ("config.json", "generation_config.json", "tokenizer.json", *MORE, RECORD)
    assert {*companions} <= {*result.output}
    for name in companions:
        assert (tmp_path / "merge" / name).read_bytes() == (tmp_path / "prune" / name).read_bytes()
    for name in companions[:-1]:
        assert (tmp_path / "merge" / name).read_bytes() == (tmp_path / "dense" / name).read_bytes()
    assert verify_folder(tmp_path / "merge", "2:8").ok


def test_the_merge_is_in_float32_and_rounds_once(tmp_path):
    sources = adapted(tmp_path, torch.bfloat16)
    merged(sources, tmp_path / "merge")
    folders = (sources.stages["prune"], sources.stages["finetune"])
    sparse = adapted_model(*folders, **ON_CPU)
    layer = sparse.model.get_submodule("model.layers.1.mlp.up_proj")
    stored = Checkpoint(tmp_path / "prune").tensor("model.layers.1.mlp.up_proj.weight").double()
    rho = torch.arange(96) * 16 // 96
    exact = stored * (1 + 2.0 * layer.A.double()[rho] * layer.B.double())
    found = Checkpoint(tmp_path / "merge").tensor("model.layers.1.mlp.up_proj.weight")
    ulp = exact.abs() * 2**-8  # half a unit in the last of bfloat16's 8 bits
    assert ((found.double() - exact).abs() <= ulp * 1.001).all()


def test_an_adapter_that_fills_pruned_weights_is_refused(tmp_path):
    sources = adapted(tmp_path, method=CarelessSPP())
    (tmp_path / "merge").mkdir()
    with pytest.raises(
        CheckFailed, match=r"merge would fill 3072 of 3072 pruned weights in model\.layers\.0\.self"
    ):
        merge.run(SppConfig(), sources, tmp_path / "merge", Silent())
    assert not list((tmp_path / "merge").iterdir())


def test_an_adapter_that_explodes_is_refused(tmp_path):
    sources = adapted(tmp_path, method=ExplodingSPP())
    (tmp_path / "merge").mkdir()
    with pytest.raises(CheckFailed, match=r"NaN or infinity in model\.layers\.0.*Nothing was sav"):
        merge.run(SppConfig(), sources, tmp_path / "merge", Silent())
    assert not list((tmp_path / "merge").iterdir())


def test_kept_weights_that_round_to_zero_are_counted(tmp_path):
    sources = adapted(tmp_path, torch.float16)
    path = tmp_path / "finetune" / "adapter.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.self_attn.q_proj"
    tensors[f"{name}.A"].fill_(1.0)
    tensors[f"{name}.B"].fill_(-0.5 + 2**-30)  # 1 + 2 · A · B is about 2e-9: below any float16
    save_file(tensors, path)
    metrics = merged(sources, tmp_path / "merge").metrics
    assert metrics["kept_weights_rounded_to_zero"] >= 64 * 64 // 4
    assert verify_folder(tmp_path / "merge", "2:8").ok


def test_an_adapter_of_another_base_is_refused(tmp_path):
    sources = adapted(tmp_path)
    path = tmp_path / "finetune" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_digest": "0" * 64}))
    with pytest.raises(ModelError, match="was trained on another base"):
        merged(sources, tmp_path / "merge")


def test_plain_lora_is_masked_again_and_what_that_costs_is_told(tmp_path):
    sources = adapted(tmp_path, method=LoRA())
    (tmp_path / "merge").mkdir()
    reporter = Silent()
    metrics = merge.run(SppConfig(), sources, tmp_path / "merge", reporter).metrics
    assert verify_folder(tmp_path / "merge", "2:8").ok
    lost = metrics["update_lost_to_the_mask"]
    assert 0.6 < lost < 0.9  # three quarters of a random update fall on pruned weights
    assert metrics["largest_logit_difference"] > 1e-3
    assert f"{lost:.0%} of its change" in reporter.warnings[-1]
