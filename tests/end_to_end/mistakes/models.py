"""Mistakes in the dense model and in what of it is to be pruned."""

from __future__ import annotations

import json

import torch
import transformers
from end_to_end.mistakes.row import (
    Mistake,
    edited,
    moved,
    removed,
    tensor_changed,
    truncated,
    written,
)

PRUNE = "spp prune small.yaml --run new"
WEIGHTS = "base/model.safetensors"
DOWN = "model.layers.1.mlp.down_proj"


def bert() -> None:
    """Save a tiny encoder in place of the decoder."""
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    transformers.BertForMaskedLM(config).save_pretrained("base")


def t5() -> None:
    """Save a tiny encoder and decoder in place of the decoder."""
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1)
    transformers.T5ForConditionalGeneration(config).save_pretrained("base")


DAMAGED = "The model is damaged; copy or download it again"

MISTAKES = [
    Mistake(
        "a model folder that is not there",
        f"{PRUNE} --model ./nowhere",
        "nowhere: no such folder. Give a model's folder or its hub id",
    ),
    Mistake(
        "a file for a model folder",
        f"{PRUNE} --model {WEIGHTS}",
        f"{WEIGHTS}: a file, not a folder. Give a model's folder or its hub id",
    ),
    Mistake(
        "a folder that holds no model",
        f"{PRUNE} --model workspace",
        "workspace has no config.json; it is not a model folder",
    ),
    Mistake(
        "a config.json that is not JSON",
        PRUNE,
        "base/config.json cannot be read as JSON: …. Copy it anew",
        (truncated("base/config.json"),),
    ),
    Mistake(
        "a config.json that is a list",
        PRUNE,
        "base/config.json does not hold a JSON object; it is corrupt. Copy it anew",
        (written("base/config.json", "[]"),),
    ),
    Mistake(
        "an unknown kind of model",
        PRUNE,
        "base/config.json: …lamma…",
        (edited("base/config.json", model_type="lamma"),),
    ),
    Mistake(
        "a config.json without the kind of model",
        PRUNE,
        "base/config.json: …model_type…",
        (edited("base/config.json", model_type=None),),
    ),
    Mistake(
        "a config.json that contradicts itself",
        PRUNE,
        "base…: …",
        (edited("base/config.json", hidden_size=33),),
    ),
    Mistake(
        "a config.json with words for numbers",
        PRUNE,
        "base…: …",
        (edited("base/config.json", num_hidden_layers="two"),),
    ),
    Mistake(
        "a model that brings its own code",
        PRUNE,
        "base/config.json: this model needs Python code of its own. "
        "If you trust it, set model.trust_remote_code",
        (edited("base/config.json", model_type="own", auto_map={"AutoConfig": "own.Config"}),),
    ),
    Mistake(
        "a quantized model",
        PRUNE,
        "base is quantized (gptq), and spp prunes plain weights. "
        "Give the model that it was made from",
        (edited("base/config.json", quantization_config={"quant_method": "gptq", "bits": 4}),),
    ),
    Mistake(
        "no weights",
        PRUNE,
        "base has no model.safetensors and no model.safetensors.index.json. "
        "Copy or download its weights",
        (removed(WEIGHTS),),
    ),
    Mistake(
        "pickled weights alone",
        PRUNE,
        "base has only pickled weights (pytorch_model.bin), which can run code when opened. If "
        "you trust them, convert them once: python -c …",
        (moved(WEIGHTS, "base/pytorch_model.bin"),),
    ),
    Mistake(
        "weights cut short",
        PRUNE,
        f"{WEIGHTS} is truncated or corrupt: …. Copy or download the file anew",
        (truncated(WEIGHTS),),
    ),
    Mistake(
        "empty weights",
        PRUNE,
        f"{WEIGHTS} is truncated or corrupt: …. Copy or download the file anew",
        (written(WEIGHTS, b""),),
    ),
    Mistake(
        "weights that are something else",
        PRUNE,
        f"{WEIGHTS} is truncated or corrupt: …. Copy or download the file anew",
        (written(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n" * 4),),
    ),
    Mistake(
        "a shard that is missing",
        PRUNE,
        "base: b.safetensors is missing, model.safetensors.index.json names it. "
        "Copy the model anew",
        (
            moved(WEIGHTS, "base/a.safetensors"),
            written(
                "base/model.safetensors.index.json",
                json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}),
            ),
        ),
    ),
    Mistake(
        "an index that names no shard",
        PRUNE,
        "base/model.safetensors.index.json has no weight_map; it is corrupt. Copy it anew",
        (removed(WEIGHTS), written("base/model.safetensors.index.json", '{"weight_map": []}')),
    ),
    Mistake(
        "weights of fewer layers than config.json says",
        PRUNE,
        "base: 9 weights that config.json asks for are missing, "
        "the first is model.layers.2.….weight. Copy or download the model anew",
        (edited("base/config.json", num_hidden_layers=3),),
    ),
    Mistake(
        "a weight of another shape",
        PRUNE,
        f"base: {DOWN}.weight is (32, 40), and config.json asks for (32, 48). "
        "Copy or download the model anew",
        (tensor_changed(WEIGHTS, f"{DOWN}.weight", lambda weight: weight[:, :40]),),
    ),
    Mistake(
        "an encoder",
        PRUNE,
        "base is a BertForMaskedLM; spp prunes decoder-only language models (…ForCausalLM)",
        (bert,),
    ),
    Mistake(
        "an encoder and decoder",
        PRUNE,
        "base is a T5ForConditionalGeneration; "
        "spp prunes decoder-only language models (…ForCausalLM)",
        (t5,),
    ),
    Mistake(
        "no tokenizer",
        PRUNE,
        "base has no tokenizer. "
        "Copy its files (tokenizer.json, tokenizer_config.json) beside config.json",
        (removed("base/tokenizer.json"), removed("base/tokenizer_config.json")),
    ),
    Mistake(
        "a tokenizer cut short",
        PRUNE,
        "base has no usable tokenizer: …. "
        "Copy its files (tokenizer.json, tokenizer_config.json) beside config.json",
        (truncated("base/tokenizer.json"),),
    ),
    Mistake(
        "a tokenizer of another model",
        PRUNE,
        "token id … is outside the model's vocabulary of 100. "
        "Use the tokenizer that belongs to the model",
        (
            edited("base/config.json", vocab_size=100),
            tensor_changed(WEIGHTS, "model.embed_tokens.weight", lambda weight: weight[:100]),
            tensor_changed(WEIGHTS, "lm_head.weight", lambda weight: weight[:100]),
        ),
    ),
    Mistake(
        "a plan for weights of more blocks than config.json says",
        "spp plan --model base",
        "base: the weights have a block model.layers.1, and config.json describes a model of 1. …",
        (edited("base/config.json", num_hidden_layers=1),),
    ),
    Mistake(
        "a weight of NaN",
        PRUNE,
        f"base: {DOWN}.weight holds 1,536 values that are NaN or infinity. {DAMAGED}",
        (tensor_changed(WEIGHTS, f"{DOWN}.weight", lambda weight: weight.fill_(torch.nan)),),
    ),
    Mistake(
        "a weight of NaN, on a run that is to be replaced",
        "spp prune small.yaml --run base-wanda-0.5 --force",
        f"base: {DOWN}.weight holds 1,536 values that are NaN or infinity. {DAMAGED}",
        (tensor_changed(WEIGHTS, f"{DOWN}.weight", lambda weight: weight.fill_(torch.nan)),),
    ),
    Mistake(
        "a norm of infinity",
        PRUNE,
        "base: model.layers.0.input_layernorm.weight holds 32 values that are NaN or infinity. "
        f"{DAMAGED}",
        (
            tensor_changed(
                WEIGHTS,
                "model.layers.0.input_layernorm.weight",
                lambda weight: weight.fill_(torch.inf),
            ),
        ),
    ),
    Mistake(
        "a weight of infinity, with a method that looks at no input",
        f"{PRUNE} --method magnitude",
        "base: model.layers.0.self_attn.k_proj.weight holds 512 values that are NaN or infinity. "
        f"{DAMAGED}",
        (
            tensor_changed(
                WEIGHTS,
                "model.layers.0.self_attn.k_proj.weight",
                lambda weight: weight.fill_(-torch.inf),
            ),
        ),
    ),
    Mistake(
        "an M that does not divide the width",
        f"{PRUNE} --pattern 16:32",
        "prune.pattern is '16:32'; model.layers.0.mlp.down_proj has 48 inputs, not a multiple "
        "of 32. Choose M from 2, 4, 8, 16, or exclude it with prune.exclude",
    ),
    Mistake(
        "an M that does not divide SparseGPT's block",
        f"{PRUNE} --method sparsegpt --pattern 2:3",
        "prune.method sparsegpt: …",
    ),
    Mistake(
        "an --include that matches nothing",
        f"{PRUNE} --include '*.q_prj'",
        "prune.include has '*.q_prj', which matches no linear layer. There are: q_proj, k_proj, "
        "v_proj, o_proj, gate_proj, up_proj, down_proj",
    ),
    Mistake(
        "an --exclude that matches nothing",
        f"{PRUNE} --exclude 'model.layers.7.*'",
        "prune.exclude has 'model.layers.7.*', which matches no linear layer. There are: q_proj, …",
    ),
    Mistake(
        "ratios for layers that are not there",
        f"{PRUNE} --allocation '{{\"*.fc1\": 0.6}}'",
        "prune.allocation has '*.fc1', which matches no linear layer. There are: q_proj, k_proj, "
        "v_proj, o_proj, gate_proj, up_proj, down_proj",
    ),
    Mistake(
        "ratios that leave the rest too much to lose",
        f"{PRUNE} --allocation '{{\"*.mlp.*\": 0.1}}'",
        "prune.sparsity is 0.5; the globs of prune.allocation leave it between … and …, "
        "whatever the other layers lose. Change prune.sparsity, or the ratios",
    ),
    Mistake(
        "ratios for all layers that make another sparsity",
        f"{PRUNE} --allocation '{{\"*\": 0.6}}'",
        "prune.sparsity is 0.5; the globs of prune.allocation match every layer and make it 0.6. "
        "Set prune.sparsity to that, or leave some layers to no glob",
    ),
    Mistake(
        "a ratio that a glob before it overrules",
        f"{PRUNE} --allocation '{{\"*.mlp.*\": 0.6, up_proj: 0.4}}'",
        "prune.allocation has 'up_proj', all of whose layers match a glob before it; "
        "the first counts. Put it further up, or leave it out",
    ),
    Mistake(
        "an --exclude of everything",
        f"{PRUNE} --exclude '*'",
        "prune.exclude matches every linear layer that prune.include does, so that none is left. "
        "Shorten prune.exclude",
    ),
    Mistake(
        "an adapter for no layer",
        "spp finetune small.yaml --target-modules '*.attention' --force",
        "finetune.target_modules has '*.attention', which matches no linear layer. "
        "There are: q_proj, …",
    ),
    Mistake(
        "a GPU that is not there",
        f"{PRUNE} --device cuda:63 --sparsity 0.7",
        "model.device is 'cuda:63', and torch sees … GPUs here. Choose auto or cpu",
    ),
]
