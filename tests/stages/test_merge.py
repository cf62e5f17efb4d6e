"""spp merge: rounded once, checked, and refused when it would break the pattern."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from conftest import FAMILIES, make_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

import spp_cli.adapters
from spp_cli.adapters.adapter import AdapterMethod
from spp_cli.adapters.attach import adapted_layers, save_adapter
from spp_cli.adapters.lora import LoRA
from spp_cli.adapters.spp import SPP, SPPLinear
from spp_cli.card import model_card
from spp_cli.config import SppConfig
from spp_cli.data.row_store import RowStore
from spp_cli.errors import CheckFailed, ConfigError, ModelError
from spp_cli.models.checkpoint import Checkpoint, locate
from spp_cli.progress import Silent
from spp_cli.reporting.story import made, rounding
from spp_cli.sparsity.masks import KeepMasks
from spp_cli.sparsity.verify import RECORD, verify_folder
from spp_cli.stages import merge, prune
from spp_cli.stages.merge_check import Losses, costs_much
from spp_cli.stages.merged_weights import RoundingCost
from spp_cli.stages.recorded_text import recorded_text
from spp_cli.stages.sparse_model import adapted_model, float32_logits, pruned_model
from spp_cli.stages.stage import Result, Sources
from spp_cli.status import run_status


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
    root: Path,
    dtype: torch.dtype = torch.float32,
    method: AdapterMethod | None = None,
    make: Callable[[Path, torch.dtype], Path] | None = None,
) -> Sources:
    """Return the sources of a merge: a tiny model, pruned, with an adapter that does something."""
    method = method or SPP()
    dense = (make or partial(make_model, "llama"))(root / "dense", dtype)
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
    names = [name for name in sparse.choose(("*",), ()) if not name.endswith(".0.mlp.down_proj")]
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


def merged(
    sources: Sources, target: Path, reporter: Silent | None = None, **settings: object
) -> Result:
    target.mkdir()
    config = SppConfig.model_validate({"merge": settings})
    return merge.run(config, sources, target, reporter or Silent())


def scale_update(sources: Sources, factor: float) -> None:
    """Make the adapter's change of each weight so many times what it was."""
    path = sources.stages["finetune"] / "adapter.safetensors"
    tensors = load_file(path)
    save_file({k: v * factor if k.endswith(".B") else v for k, v in tensors.items()}, path)


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


def test_an_update_below_half_a_step_is_not_thrown_away(tmp_path):
    sources = adapted(tmp_path, torch.bfloat16)
    scale_update(sources, 1e-3)
    with pytest.raises(CheckFailed, match=r"nearest\) loses nearly all.*merge\.dtype: float32"):
        merged(sources, tmp_path / "refused", rounding="nearest")
    assert not list((tmp_path / "refused").iterdir())
    reporter = Silent()
    lost = merged(sources, tmp_path / "lost", reporter, rounding="nearest", allow_loss=True)
    kept = merged(sources, tmp_path / "kept")
    costs = [result.metrics["rounding"] for result in (lost, kept)]
    assert costs[0]["kept_weights_unchanged"] > 0.99
    assert costs[0]["error_of_update"] > 0.9
    assert costs[0]["update_kept"] < 0.1
    assert re.search(r"^rounded to bfloat16 \(nearest\): (99|100)\.", reporter.warnings[0])
    assert costs[1]["layers"] == {"stochastic": 13}
    assert costs[1]["update_kept"] == pytest.approx(1, abs=0.3)
    assert verify_folder(tmp_path / "kept", "2:8").ok
    again = merged(sources, tmp_path / "again", rounding="stochastic")
    assert again.metrics["rounding"] == costs[1]
    files = [tmp_path / name / "model.safetensors" for name in ("kept", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_a_merge_says_of_its_rounding_is_what_the_files_say(tmp_path):
    sources = adapted(tmp_path, torch.bfloat16)
    scale_update(sources, 0.02)
    cost = merged(sources, tmp_path / "merge", rounding="nearest").metrics["rounding"]
    sparse = adapted_model(sources.stages["prune"], sources.stages["finetune"], **ON_CPU)
    layers = adapted_layers(sparse.model)
    before, after = Checkpoint(tmp_path / "prune"), Checkpoint(tmp_path / "merge")
    base, stored = (
        torch.cat([each.tensor(f"{name}.weight").double().flatten() for name in layers])
        for each in (before, after)
    )
    exact = torch.cat([layer.effective_weight().double().flatten() for layer in layers.values()])
    keep = torch.cat([sparse.masks[name].flatten() for name in layers])
    update, error = exact - base, stored - exact
    assert cost["error_of_update"] == pytest.approx((error.norm() / update.norm()).item(), rel=1e-3)
    assert cost["kept_weights_unchanged"] == (stored == base)[keep].double().mean().item()
    found = (update @ (stored - base) / (update @ update)).item()
    assert cost["update_kept"] == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize(("asked", "factor"), [("float32", 1e-3), ("float16", 1.0)])
def test_another_type_is_stored_everywhere_and_config_json_says_so(asked, factor, tmp_path):
    sources = adapted(tmp_path, torch.bfloat16)
    scale_update(sources, factor)
    metrics = merged(sources, tmp_path / "merge", dtype=asked).metrics
    checkpoint = Checkpoint(tmp_path / "merge")
    dtype = getattr(torch, asked)
    assert {checkpoint.dtype(name) for name in checkpoint.locations} == {dtype}
    assert checkpoint.config["dtype"] == asked == metrics["rounding"]["dtype"]
    before = Checkpoint(tmp_path / "prune")
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(checkpoint.tensor(name), before.tensor(name).to(dtype))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merge", dtype="auto")
    assert model.dtype == dtype
    assert verify_folder(tmp_path / "merge", "2:8").ok
    exact = {"float32": 1e-6, "float16": 1e-2}[asked]
    assert metrics["rounding"]["error_of_update"] <= exact
    assert metrics["largest_logit_difference"] <= exact


@pytest.mark.parametrize(
    ("error", "product", "losses", "much"),
    [
        (1e-4, 1.0, None, False),
        (0.04, 0.96, None, True),  # a fifth of the norm
        (4.0, 1.0, None, True),
        (4.0, 1.0, (5.0, 4.995, 4.996), False),  # seen to be harmless
        (4.0, 1.0, (5.0, 4.995, 5.2), True),
        (1.0, 0.05, (5.0, 4.995, 5.0), True),
        (4.0, 1.0, (5.0, 4.0, 4.05), False),  # 95 % of the gain is left
        (1e-4, 1.0, (5.0, 4.0, 4.2), True),
    ],
)
def test_it_is_warned_of_what_costs_the_finetune_much(error, product, losses, much):
    cost = RoundingCost(kept=10, update=1.0, error=error, product=product)
    assert costs_much(cost, Losses(*losses, 100, "text") if losses else None) == much


def test_a_type_for_pruning_is_not_taken_and_ignored(tmp_path):
    sources = adapted(tmp_path, torch.bfloat16)
    config = SppConfig.model_validate({"model": {"dtype": "float32"}})
    (tmp_path / "merge").mkdir()
    with pytest.raises(ConfigError, match=r"pruned in bfloat16.*merge\.dtype: float32"):
        merge.run(config, sources, tmp_path / "merge", Silent())


def test_a_merged_weight_that_overflows_is_refused_by_name(tmp_path):
    sources = adapted(tmp_path, torch.bfloat16)
    scale_update(sources, 1e9)
    with pytest.raises(ModelError, match=r"layers\.\d\..* has values of up to .*merge\.dtype to"):
        merged(sources, tmp_path / "merge", dtype="float16")
    assert not list((tmp_path / "merge").iterdir())


def test_losses_are_those_of_the_runs_own_text(side_by_side):
    run = side_by_side.run("wanda")
    loss = run.manifest("merge").metrics["rounding"]["loss"]
    rows = run.manifest("finetune").metrics["validation"]
    assert loss["source"] == rows["source"]
    folders = {"prune": run.folder / "prune", "finetune": run.folder / "finetune"}
    store = RowStore(side_by_side.training, side_by_side.digest_cache)
    sources = Sources(Path(), False, folders, rows=store)
    tokens = recorded_text(sources, "validation", sequences=1, length=8).tokens
    assert loss["tokens"] == tokens.numel() - len(tokens)
    models = {
        "pruned": AutoModelForCausalLM.from_pretrained(folders["prune"], dtype=torch.float32),
        "adapter": adapted_model(*folders.values(), **ON_CPU).model,
        "merged": AutoModelForCausalLM.from_pretrained(run.folder / "merge", dtype=torch.float32),
    }
    for name, model in models.items():
        with torch.no_grad():
            found = model(tokens, labels=tokens).loss.item()
        assert loss[name] == pytest.approx(found, abs=1e-5), name
    cost = rounding(run_status(run))
    assert f"{loss['adapter']:.4f} with the adapter, {loss['merged']:.4f} merged" in cost
    assert cost[4:] in made({"merge": run.manifest("merge").model_dump()}, "base")[0]
    assert "type and rounding:** bfloat16, " in model_card(run, "merge")


def test_a_model_that_also_sees_is_merged(tmp_path):
    """Its vocabulary stands in the part of config.json that is for text."""

    def make(folder: Path, dtype: torch.dtype) -> Path:
        text = {**FAMILIES["gemma3"][1], "vocab_size": 128}
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
        torch.manual_seed(0)
        config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        Gemma3ForConditionalGeneration(config).to(dtype).save_pretrained(folder)
        written = json.loads((folder / "config.json").read_text())
        written["text_config"]["dtype"] = "bfloat16"  # as in some that are published
        (folder / "config.json").write_text(json.dumps(written))
        return folder

    sources = adapted(tmp_path, torch.bfloat16, make=make)
    metrics = merged(sources, tmp_path / "merge", dtype="float32").metrics
    assert metrics["largest_logit_difference"] < 1e-5 < metrics["largest_logit"]
    config = Checkpoint(tmp_path / "merge").config
    assert {config["dtype"], config["text_config"]["dtype"]} == {"float32"}


def test_a_short_context_is_long_enough(tmp_path):
    make = partial(make_model, "gpt2")  # it has 64 positions, and no 65th
    sources = adapted(tmp_path, make=make)
    assert merged(sources, tmp_path / "merge").metrics["largest_logit_difference"] < 1e-5
