"""Quantized checkpoints: recognised by their tensors, their config.json and the files of tools."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spp_cli.errors import ModelError
from spp_cli.reading import read_json

__all__ = ["refuse_quantized"]

_RECORDS = ("quantize_config.json", "quant_config.json")  # of AutoGPTQ, and of early AutoAWQ
_MODEL_OPT = "hf_quant_config.json"
_KEYS = ("quantization_config", "compression_config", "quantization")  # the last is of MLX
# How the names of tensors end that only a quantized model has.
_ENDINGS = {
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".W_q": "HQQ",
    ".SCB": "bitsandbytes",
    ".absmax": "bitsandbytes",
    ".weight_scale_inv": "FP8",
    "_proj_blocks": "MXFP4",
}
_SCALES = ("_scale", "_scales", ".scale", ".scales", "scale_weight")
# Types of numbers that say nothing without a scale, which may be stored with each of their blocks.
_BLOCK_SCALED = {"F4": "FP4", "F6_E2M3": "FP6", "F6_E3M2": "FP6", "F8_E8M0": "MX"}
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
_DEQUANTIZED = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}


def refuse_quantized(
    folder: Path, config: Mapping[str, Any], types: Mapping[str, str] | None = None
) -> None:
    """Refuse a checkpoint whose weights are not plain numbers.

    Args:
        folder: of the checkpoint.
        config: what its config.json says.
        types: of each stored tensor the type, as safetensors writes it ("BF16"). Without it only
            config.json counts. If there are none, the records that tools leave count, too.

    Raises:
        ModelError: it is one; in one line, with its kind and how to get a plain one.
    """
    method = _method(config)
    kind = method
    if kind is None and types is not None:
        kind = _by_tensors(types) if types else _by_records(folder)
    if kind is None:
        return
    remedy = "Give the model that it was made from"
    if made := _DEQUANTIZED.get(method or ""):
        remedy += (
            ', or make it plain once: python -c "from transformers import '
            f"AutoModelForCausalLM as M, {made} as C; M.from_pretrained('{folder}', "
            "quantization_config=C(dequantize=True)).save_pretrained('plain')\""
        )
    raise ModelError(f"{folder} is quantized ({kind}), and spp prunes plain weights. {remedy}")


def _method(config: Mapping[str, Any]) -> str | None:
    """Return the method that config.json names, of the model or of the part that writes text."""
    parts = (config, config.get("text_config"), config.get("llm_config"))
    for part in (part for part in parts if isinstance(part, Mapping)):
        for key in _KEYS:
            found = part.get(key)
            if isinstance(found, Mapping) and found:
                bits = f"{found['bits']} bits" if "bits" in found else "some way"
                return str(found.get("quant_method") or bits)
    return None


def _by_tensors(types: Mapping[str, str]) -> str | None:
    has_scales = any(name.endswith(_SCALES) for name in types)
    for name, type_ in types.items():
        if kind := next((it for end, it in _ENDINGS.items() if name.endswith(end)), None):
            return kind
        if ".quant_state." in name:
            return "bitsandbytes"
        if type_ in _BLOCK_SCALED:
            return _BLOCK_SCALED[type_]
        if name.endswith(".weight") and type_ in _INTEGERS:
            return f"{type_.replace('U', 'uint').replace('I', 'int')} weights"
        if has_scales and type_.startswith("F8_") and not name.endswith(_SCALES):
            return "FP8"
    return None


def _by_records(folder: Path) -> str | None:
    for name in _RECORDS:
        if (found := _read(folder / name)) is not None:
            bits = found.get("bits") or found.get("w_bit")
            method = found.get("quant_method") or found.get("version") or "GPTQ or AWQ"
            return f"{method}, {bits} bits" if bits else str(method)
    found = (_read(folder / _MODEL_OPT) or {}).get("quantization")
    algorithm = found.get("quant_algo") if isinstance(found, Mapping) else None
    return f"ModelOpt, {algorithm}" if algorithm else None


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        found = read_json(path)
        return found if isinstance(found, dict) else {}
    return None
