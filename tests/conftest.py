"""Tiny real models for all tests: real transformers classes, random weights, saved to disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import settings
from safetensors.torch import save_file

from spp_cli.config import SppConfig
from spp_cli.fingerprint import digest_of, file_digests, sealed
from spp_cli.models.checkpoint import SINGLE, locate
from spp_cli.pipeline import run_stages
from spp_cli.progress import Silent
from spp_cli.publishing import MANIFEST, RESULTS
from spp_cli.workspace import STAGES, Run, Workspace

# Time is measured in scripts/bench_*.py, never in a test; and a first call imports much.
settings.register_profile("spp", deadline=None, max_examples=50)
settings.load_profile("spp")

COMMON = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
GPT2 = {
    "n_embd": 64,
    "n_inner": 96,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 128,
}
OPT = {
    "hidden_size": 64,
    "word_embed_proj_dim": 32,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "vocab_size": 128,
}

GEMMA3 = {
    **COMMON,
    **HEADS,
    "head_dim": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],  # each with its own rotary table
}

QWEN_MOE = {
    **COMMON,
    **HEADS,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
}
DEEPSEEK = {
    **COMMON,
    **HEADS,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 96,
    "first_k_dense_replace": 1,  # the first block has no experts
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}

# its second block attends to the tokens that the first one chose
GLM_DSA = {
    **{key: value for key, value in DEEPSEEK.items() if key not in ("n_group", "topk_group")},
    **{"index_topk": 8, "index_n_heads": 2, "index_head_dim": 32, "qk_head_dim": 32},
    "indexer_types": ["full", "shared"],
}

# name → config class and its settings; each becomes a model of some 100 k parameters
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaConfig", {**COMMON, **HEADS}),
    "llama-tied": ("LlamaConfig", {**COMMON, **HEADS, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {**COMMON, **HEADS, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", {**COMMON, **HEADS}),
    "qwen3": ("Qwen3Config", {**COMMON, **HEADS, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {**COMMON, **HEADS, "head_dim": 16, "sliding_window": 8}),
    "phi3": ("Phi3Config", {**COMMON, **HEADS, "pad_token_id": 0}),
    "opt": ("OPTConfig", OPT),
    "gpt2": ("GPT2Config", GPT2),
    "gpt_neox": ("GPTNeoXConfig", {**COMMON, **HEADS}),
    "falcon": ("FalconConfig", {**COMMON, **HEADS, "new_decoder_architecture": True}),
    "bloom": ("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128}),
    "stablelm": ("StableLmConfig", {**COMMON, **HEADS}),
    "olmo2": ("Olmo2Config", {**COMMON, **HEADS}),
    "cohere": ("CohereConfig", {**COMMON, **HEADS}),
    "gemma3": ("Gemma3TextConfig", GEMMA3),
    "phi": ("PhiConfig", {**COMMON, **HEADS}),
    "openai-gpt": ("OpenAIGPTConfig", {k: v for k, v in GPT2.items() if k != "n_inner"}),
    "mixtral": ("MixtralConfig", {**COMMON, **HEADS, "num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", QWEN_MOE | {"shared_expert_intermediate_size": 80}),
    "qwen3_moe": ("Qwen3MoeConfig", {**QWEN_MOE, "head_dim": 16}),
    "olmoe": ("OlmoeConfig", {**COMMON, **HEADS, "num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3": ("DeepseekV3Config", DEEPSEEK),
    "glm_moe_dsa": ("GlmMoeDsaConfig", GLM_DSA),
    "granitemoe": ("GraniteMoeConfig", {**COMMON, **HEADS, "num_local_experts": 4}),
    "gpt_oss": ("GptOssConfig", {**COMMON, **HEADS, "head_dim": 16, "num_local_experts": 4}),
}


def make_model(
    family: str, folder: Path, dtype: torch.dtype = torch.float32, **changes: object
) -> Path:
    """Save a tiny random model of ``family`` into ``folder``; it has no tokenizer."""
    name, defaults = FAMILIES[family]
    arguments = {**defaults, **changes}
    torch.manual_seed(0)
    config = getattr(transformers, name)(**arguments, bos_token_id=1, eos_token_id=2)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(folder)
    return folder


def change_config(folder: Path, **changes: object) -> None:
    """Set keys of a config.json; None leaves one out."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def store_fused(folder: Path) -> set[str]:
    """Store a mixture anew as some versions do: all experts of a block in one tensor; its names."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert any(name.endswith("experts.gate_up_proj") for name in tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    return set(tensors)


def change_results(run: Run, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a run's results.json, and its record with it, as if they had been measured so."""
    folder = run.folder / "eval"
    document = json.loads((folder / RESULTS).read_text())
    change(document)
    (folder / RESULTS).write_text(json.dumps(document))
    record = json.loads((folder / MANIFEST).read_text())
    digests = file_digests(folder, [RESULTS])
    record |= {"files": {RESULTS: (folder / RESULTS).stat().st_size}, "digests": digests}
    record["output_digest"] = digest_of(digests)
    (folder / MANIFEST).write_text(json.dumps(sealed(record)))


def add_tokenizer(folder: Path) -> Path:
    """Put the embedded tokenizer beside a model; the model's vocabulary has to be 4096."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(locate("demo")[0] / name, folder / name)
    return folder


def make_base_and_text(folder: Path) -> Path:
    """Save a tiny bfloat16 Llama with the embedded tokenizer as base; return a text beside it."""
    make_model("llama", folder / "base", torch.bfloat16, vocab_size=4096)
    add_tokenizer(folder / "base")
    text = folder / "text.txt"
    text.write_text("".join(f"def add_{number}(x): return x + {number}\n" for number in range(200)))
    return text


@pytest.fixture(scope="session")
def side_by_side(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace to read: ``wanda`` has all stages, ``magnitude`` only pruned, on longer text."""
    folder = tmp_path_factory.mktemp("side-by-side")
    text = make_base_and_text(folder)
    read = {"source": str(text), "sequence_length": 32}
    settings = {
        "model": str(folder / "base"),
        "workspace": str(folder / "runs"),
        "prune": {"calibration": {**read, "samples": 2}},
        "finetune": {
            "data": {**read, "samples": 8},
            "max_steps": 4,
            "batch_size": 2,
            "gradient_accumulation_steps": 1,
            "learning_rate": 0.01,
        },
        "merge": {"check_sequences": 1, "check_length": 8, "packed": True},
        "eval": {"perplexity": {**read, "max_chunks": 2}},
    }
    run_stages(STAGES, SppConfig.model_validate(settings), Silent(), run="wanda")
    settings["prune"] = {"method": "magnitude", "pattern": "2:4"}
    settings["eval"] = {"perplexity": {**read, "max_chunks": 3}}
    run_stages(["prune", "eval"], SppConfig.model_validate(settings), Silent(), run="magnitude")
    return Workspace(folder / "runs")


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of model folders: tiny_model("llama") → path."""

    def make(family: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
        return make_model(family, tmp_path / f"model-{family}", dtype)

    return make


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The embedded model's folder."""
    return locate("demo")[0]
