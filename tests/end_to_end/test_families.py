"""Any decoder-only model: pruned, finetuned, merged, and reloaded in plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, add_tokenizer, make_model
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from spp_cli.config import SppConfig
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.decoder import Decoder
from spp_cli.models.loading import load_model
from spp_cli.models.prunable import Prunable
from spp_cli.models.stored import StoredTensors
from spp_cli.progress import Silent
from spp_cli.sparsity.verify import verify_folder
from spp_cli.stages import finetune, merge, prune
from spp_cli.stages.sparse_model import adapted_model, float32_logits
from spp_cli.stages.stage import Sources

PATTERNS = {
    "2:4": {"pattern": "2:4"},
    "60 %": {"pattern": "unstructured", "sparsity": 0.6},
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory):
    """Return a maker of dense models with the embedded tokenizer, each made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("dense") / family
            made[family] = make_model(family, folder, vocab_size=4096)
            add_tokenizer(folder)
        return made[family]

    return make


def config_of(pattern: dict[str, object]) -> SppConfig:
    return SppConfig.model_validate(
        {
            "prune": {**pattern, "calibration": {"samples": 3, "sequence_length": 16}},
            "finetune": {
                "data": {"sequence_length": 16, "samples": 8, "validation_samples": 2},
                "learning_rate": 0.05,
                "batch_size": 2,
                "gradient_accumulation_steps": 1,
                "max_steps": 2,
            },
            "merge": {"check_sequences": 1, "check_length": 16},
        }
    )


def pruned(folder: Path, target: Path, pattern: str) -> Path:
    target.mkdir()
    prune.run(config_of(PATTERNS[pattern]), Sources(folder, True), target, Silent())
    return target


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return float32_logits(model, torch.randint(3, 4096, (2, 16), generator=generator))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_reloads_generates_and_is_exactly_as_sparse_as_asked(
    family, pattern, dense, tmp_path
):
    source = dense(family)
    target = pruned(source, tmp_path / "pruned", pattern)

    report = verify_folder(target)
    assert report.ok
    model = load(target)
    generated = model.generate(torch.tensor([[1, 5, 7]]), max_new_tokens=4, do_sample=False)
    assert generated.shape == (1, 7)
    ours = load_model(Checkpoint(target))
    torch.testing.assert_close(logits(ours), logits(model), rtol=1e-4, atol=1e-5)

    every = Decoder(ours).all_linears()
    assert [layer.name for layer in report.layers] == [linear.name for linear in every]
    linears = Prunable(Decoder(ours)).linears  # the others steer, and stay dense
    for linear in linears:
        zeros = (linear.weight == 0).sum(dim=1)
        columns = linear.in_features
        assert (zeros == (columns // 2 if pattern == "2:4" else columns * 6 // 10)).all()

    before, after = Checkpoint(source), Checkpoint(target)
    assert set(before.locations) == set(after.locations)
    stored = StoredTensors(after, ours)
    prunable = {name: torch.zeros(before.shape(name)).bool() for name in before.locations}
    for linear in linears:
        part = stored.part(f"{linear.name}.weight")
        part.of(prunable[part.name]).fill_(True)
    for name in before.locations:
        dense_tensor, sparse_tensor = before.tensor(name), after.tensor(name)
        assert dense_tensor.dtype == sparse_tensor.dtype
        # Wanda leaves what it keeps bit for bit; all else goes on as it was.
        pruned_away = prunable[name] & (sparse_tensor == 0)
        assert torch.equal(sparse_tensor, dense_tensor.masked_fill(pruned_away, 0))
    for name in ("config.json", "tokenizer.json"):
        assert (source / name).read_bytes() == (target / name).read_bytes()
    if model.config.tie_word_embeddings:
        embeddings = model.get_input_embeddings().weight
        assert model.get_output_embeddings().weight.data_ptr() == embeddings.data_ptr()


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        *("llama-tied", "gemma2", "phi3", "opt", "gpt2", "gpt_neox"),
        *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "granitemoe", "gpt_oss"),
    ],
)
def test_finetuning_and_merging_keep_every_zero(family, dense, tmp_path):
    source = dense(family)
    folders = {"prune": pruned(source, tmp_path / "prune", "2:4")}
    for name, stage in (("finetune", finetune), ("merge", merge)):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        stage.run(
            config_of(PATTERNS["2:4"]),
            Sources(source, True, dict(folders)),
            folders[name],
            Silent(),
        )
    report = verify_folder(folders["merge"], "2:4")
    assert report.ok
    assert report.masks
    before, after = (load_model(Checkpoint(folders[name])) for name in ("prune", "merge"))
    pairs = list(zip(Decoder(before).all_linears(), Decoder(after).all_linears(), strict=True))
    for old, new in pairs:
        assert not new.weight[old.weight == 0].count_nonzero()
    moved = {old.name for old, new in pairs if not torch.equal(old.weight, new.weight)}
    assert moved  # and it did train, the experts too
    assert any(".experts." in old.name for old, _ in pairs) == any(".experts." in m for m in moved)

    adapted = adapted_model(
        folders["prune"],
        folders["finetune"],
        device=torch.device("cpu"),
        dtype=torch.float32,
        trust_remote_code=False,
    )
    merged = load(folders["merge"])
    torch.testing.assert_close(logits(merged), logits(adapted.model), rtol=1e-3, atol=1e-4)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        if (source / name).exists():
            assert (source / name).read_bytes() == (folders["merge"] / name).read_bytes()


def save_as_released(folder: Path) -> Path:
    """Save a tiny Qwen3.5 that sees, as released: under another class than the text model's."""
    text = {
        **{"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16},
        **{"linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"]},
        "rope_parameters": {
            **{"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
            "mrope_section": [1, 1, 0],
        },
    }
    vision = {
        **{"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2},
        **{"out_hidden_size": 64, "num_position_embeddings": 16},
    }
    torch.manual_seed(0)
    config = Qwen3_5Config(text_config=text, vision_config=vision, image_token_id=4090)
    Qwen3_5ForConditionalGeneration(config).save_pretrained(folder)
    return add_tokenizer(folder)


@pytest.mark.slow
def test_a_model_that_also_sees_is_pruned_as_released_and_keeps_its_eyes(tmp_path):
    source = save_as_released(tmp_path / "dense")
    folders = {"prune": pruned(source, tmp_path / "prune", "2:4")}
    for name, stage in (("finetune", finetune), ("merge", merge)):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        given = Sources(source, True, dict(folders))
        stage.run(config_of(PATTERNS["2:4"]), given, folders[name], Silent())
    assert verify_folder(folders["merge"], "2:4").ok

    before, after = Checkpoint(source), Checkpoint(folders["merge"])
    assert set(before.locations) == set(after.locations)
    eyes = [name for name in before.locations if ".visual." in name]
    assert len(eyes) > 10
    assert all(torch.equal(before.tensor(name), after.tensor(name)) for name in eyes)
    assert (folders["merge"] / "config.json").read_bytes() == (source / "config.json").read_bytes()
    whole = Qwen3_5ForConditionalGeneration.from_pretrained(folders["merge"]).eval()
    torch.testing.assert_close(logits(whole), logits(load(folders["merge"])), rtol=1e-4, atol=1e-5)
