"""Tiny random models of every decoder class that transformers can load for causal language models.

A family is its ``model_type``. Sizes go by the names that its configuration class has; what some
family needs besides stands in ``EXTRA``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

__all__ = ["VOCABULARY", "families", "save"]

VOCABULARY = 4096  # of the embedded tokenizer, which goes along
_LARGEST = 30_000_000  # parameters
_TOKENIZER = Path(__file__).parents[1] / "spp_cli" / "demo" / "model"
_TURNS = ["sliding_attention", "full_attention"]

# setting → value, wherever a configuration has a setting of that name
_TEXT: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), 4096),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "block_dim"), 64),
    **dict.fromkeys(("attention_hidden_size", "lru_width", "embedding_size", "mamba_d_ssm"), 64),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "ffn_dim", "ffn_hidden_size"), 96),
    **dict.fromkeys(("block_ff_dim", "mlp_hidden_size", "decoder_ffn_dim", "d_inner"), 96),
    **dict.fromkeys(("encoder_ffn_dim", "intermediate_size_mlp", "dense_intermediate_size"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers"), 4),
    **dict.fromkeys(("num_encoder_layers",), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("linear_num_value_heads", "mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "n_mamba_heads"), 2),
    **dict.fromkeys(("num_query_groups", "index_n_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("swa_num_attention_heads", "indexer_n_heads"), 4),
    **dict.fromkeys(("head_dim", "d_head", "d_kv", "attention_head_dim", "kv_channels"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "swa_head_dim"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "indexer_head_dim"), 16),
    **dict.fromkeys(("hidden_size_per_layer_input", "state_size", "ssm_state_size"), 16),
    **dict.fromkeys(("mamba_d_state", "mamba_chunk_size", "chunk_size", "sliding_window"), 16),
    **dict.fromkeys(("sliding_window_size", "attention_window_size"), 16),
    **dict.fromkeys(("qk_head_dim", "index_head_dim", "q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("global_head_dim", "mamba_head_dim", "mamba_headdim"), 32),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(("moe_shared_expert_intermediate_size",), 48),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_num_experts",), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("expand", "mamba_expand", "num_kv_shared_layers"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "n_groups"), 1),
    **dict.fromkeys(("mamba_n_groups", "num_expert_group", "indexer_kv_heads"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 256),
    **dict.fromkeys(("index_topk", "indexer_budget"), 8),
    **dict.fromkeys(("laurel_rank", "hc_lowrank"), 16),
    "mamba_d_head": "auto",
    "zero_expert_num": 0,
    "conv_L_cache": 3,
}
# of what sees or hears, in models that do so too
_OTHER: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim"), 32),
    **dict.fromkeys(("intermediate_size",), 48),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_attention_heads", "num_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "spatial_merge_size", "num_global_layers"), 2),
    **dict.fromkeys(("temporal_patch_size",), 2),
    **dict.fromkeys(("head_dim", "num_position_embeddings"), 16),
    **dict.fromkeys(("image_size",), 28),
    **dict.fromkeys(("patch_size",), 14),
    **dict.fromkeys(("out_hidden_size", "vision_output_dim"), 64),
    **dict.fromkeys(("projector_input_dim", "projector_output_dim"), 64),
}
_DROP = object()
_MLA = {"num_key_value_heads": 4}
EXTRA: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), _MLA),
    **dict.fromkeys(("youtu", "sarvam_mla", "axk1", "axk2"), _MLA),
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "bailing_hybrid": {
        **_MLA,
        **{"linear_head_dim": 16, "linear_num_heads": 4, "layer_group_size": 2},
        "num_nextn_predict_layers": 0,
    },
    "dots3_note": _MLA,
    "dots3_note_text": _MLA,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gemma4_unified": {"text_config": {"num_kv_shared_layers": 0}},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "deepseek_v4": {"head_dim": 64, "o_groups": 4, "o_lora_rank": 16},
    "gemma3_text": {"layer_types": _TURNS * 2},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "layer_types": _TURNS * 3,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0],
    },
    "gemma4_text": {"num_hidden_layers": 6, "layer_types": _TURNS * 3},
    "glm_moe_dsa": {**_MLA, "indexer_types": ["full", "shared"] * 2},
    "inkling2_loop_text": {
        **{"loop_layer_index_start": 2, "loop_layer_index_end": 4, "loop_num_passes": 2},
        **{"loop_gate_rank": 8, "num_hidden_layers": 6, "rel_extent": 64},
        **{"n_layers_per_attn_res_block": 2, "swa_num_attention_heads": 4},
    },
    "inkling2_text": {"rel_extent": 64, "n_layers_per_attn_res_block": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {**_MLA, "num_layers": 2, "num_hidden_layers": _DROP},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "minicpm3": _MLA,
    "qwen4_exp_text": {
        **{"hc_count": 2, "ple_embed_dim": 16, "ngram_vocab_size_base": 64},
        **{"indexer_n_heads": 2, "indexer_compress_ratio": 4, "split_ngram_parts": 1},
    },
    "zamba": {
        **{"num_hidden_layers": 6, "attn_layer_period": 2, "attn_layer_offset": 1},
        **{"attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4},
        "mamba_dt_rank": 8,
    },
    "zamba2": {
        **{"num_hidden_layers": 6, "layer_types": ["mamba", "hybrid"] * 3, "num_mem_blocks": 1},
        **{"hybrid_layer_ids": [1, 3, 5], "n_mamba_heads": 8, "num_key_value_heads": 4},
        **{"attention_hidden_size": 128, "attention_head_dim": 32, "mamba_headdim": 16},
        **{"num_query_groups": 4, "adapter_rank": 8},
    },
    "zaya": {"num_experts_per_tok": 1},
}


def families() -> list[str]:
    """Return the model types with a decoder class and a configuration class of its own."""
    return [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING]


def _settings(config: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """Return those of ``sizes`` that ``config`` has, and the same of the configurations in it."""
    nested = {
        name: part for name, part in vars(config).items() if hasattr(type(part), "sub_configs")
    }
    have = config.to_dict()
    found = {k: v for k, v in sizes.items() if k in have and not isinstance(have[k], dict)}
    if sizes is _TEXT and "pad_token_id" in have:
        found["pad_token_id"] = 0
    for name, part in nested.items():
        inner = _TEXT if "text" in name or name in ("decoder", "llm_config") else _OTHER
        if inner is _TEXT:
            found[name] = {**_settings(part, inner), **EXTRA.get(part.model_type, {})}
        else:
            found[name] = _settings(part, inner)
    return found


def config_of(family: str) -> Any:
    """Return a configuration of some hundred thousand parameters."""
    kind = CONFIG_MAPPING[family]
    settings = {**_settings(kind(), _TEXT), **EXTRA.get(family, {})}
    has_decoder = "is_decoder" in kind().to_dict()
    settings |= {
        "bos_token_id": 1,
        "eos_token_id": 2,
        **dict.fromkeys(["is_decoder"] * has_decoder, True),
    }
    return kind(**{key: value for key, value in settings.items() if value is not _DROP})


def save(family: str, folder: Path) -> PreTrainedModel:
    """Save a random float32 model of ``family`` with the embedded tokenizer; return it.

    No weight has the value it begins with in training: zeros and ones would hide mistakes.
    """
    config = config_of(family)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > _LARGEST:
        raise ValueError(f"{size} parameters, for want of settings that make it small")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in _constant(model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(_TOKENIZER / name, folder / name)
    return model


def _constant(model: PreTrainedModel) -> Iterator[torch.nn.Parameter]:
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() > 1 and parameter.std() < 1e-6:
            yield parameter
