"""Quantized weights are refused as such, with their kind, wherever what tells of them stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import change_config, make_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from spp_cli.errors import ModelError
from spp_cli.models.checkpoint import SINGLE, Checkpoint

WEIGHT = "model.layers.0.mlp.up_proj.weight"
LAYER = "model.layers.0.mlp.up_proj"
FP8 = torch.zeros(96, 64, dtype=torch.float8_e4m3fn)
PACKED = torch.zeros(96, 8, dtype=torch.int32)


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("FP8", {WEIGHT: FP8, f"{LAYER}.weight_scale_inv": torch.ones(1, 1)}),
        ("FP8", {WEIGHT: FP8, f"{LAYER}.weight_scale": torch.ones(1)}),
        ("FP8", {WEIGHT: FP8, f"{LAYER}.scale_weight": torch.ones(1)}),
        ("int8 weights", {WEIGHT: FP8.view(torch.int8), f"{LAYER}.weight_scale": torch.ones(1)}),
        ("uint8 weights", {WEIGHT: FP8.view(torch.uint8), f"{LAYER}.weight_scale": FP8[0].clone()}),
        ("uint32 weights", {WEIGHT: PACKED.view(torch.uint32), f"{LAYER}.scales": torch.ones(1)}),
        ("MX", {f"{LAYER}.scale": torch.zeros(96, 2, dtype=torch.float8_e8m0fnu)}),
        ("GPTQ or AWQ", {f"{LAYER}.qweight": PACKED, f"{LAYER}.qzeros": PACKED[0].clone()}),
        ("compressed-tensors", {f"{LAYER}.weight_packed": PACKED}),
        ("bitsandbytes", {f"{LAYER}.weight.absmax": torch.ones(1)}),
        ("bitsandbytes", {f"{LAYER}.weight.quant_state.bitsandbytes__nf4": PACKED}),
        ("MXFP4", {"model.layers.0.mlp.experts.gate_up_proj_blocks": FP8.view(torch.uint8)}),
    ],
)
def test_by_its_tensors(kind: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "model", torch.bfloat16)
    save_file({**load_file(folder / SINGLE), **tensors}, folder / SINGLE, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"model is quantized \({kind}\), and spp prunes plain"):
        Checkpoint(folder)


def in_config(**keys: object) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **keys)


def in_file(name: str, record: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps(record))
        (folder / SINGLE).rename(folder / "gptq_model-4bit-128g.safetensors")

    return change


MODEL_OPT = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("gptq", in_config(quantization_config={"quant_method": "gptq", "bits": 4})),
        ("awq", in_config(text_config={"quantization_config": {"quant_method": "awq"}})),
        (
            "compressed-tensors",
            in_config(compression_config={"quant_method": "compressed-tensors"}),
        ),
        ("4 bits", in_config(quantization={"group_size": 64, "bits": 4})),
        ("GPTQ or AWQ, 4 bits", in_file("quantize_config.json", {"bits": 4, "group_size": 128})),
        ("GEMM, 4 bits", in_file("quant_config.json", {"w_bit": 4, "version": "GEMM"})),
        ("ModelOpt, NVFP4", in_file("hf_quant_config.json", MODEL_OPT)),
    ],
)
def test_by_what_its_maker_wrote(kind: str, change: Callable[[Path], None], tmp_path: Path) -> None:
    change(folder := make_model("llama", tmp_path / "model"))
    with pytest.raises(
        ModelError, match=rf"model is quantized \({kind}\), .*that it was made from"
    ):
        Checkpoint(folder)


def test_where_transformers_can_make_it_plain_the_command_is_given(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "model")
    in_config(quantization_config={"quant_method": "fp8"})(folder)
    with pytest.raises(ModelError, match=r"FineGrainedFP8Config as C; .*dequantize=True"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: None,
        in_config(quantization_config=None),
        lambda folder: (folder / "quantize_config.json").write_text('{"bits": 4}'),
        lambda folder: (folder / "hf_quant_config.json").write_text('{"quantization": {}}'),
    ],
)
def test_plain_weights_are_plain_whatever_lies_beside_them(
    change: Callable[[Path], object], tmp_path: Path
) -> None:
    folder = make_model("gpt2", tmp_path / "model", torch.bfloat16)
    change(folder)
    assert WEIGHT not in Checkpoint(folder).locations
