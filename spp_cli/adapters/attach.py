"""Put adapters on a model, take them off, save them, load them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from spp_cli import processes
from spp_cli.adapters import TABLE
from spp_cli.adapters.adapter import AdaptedLinear, AdapterMethod
from spp_cli.adapters.frozen import DenseWeight, FrozenWeight, PackedWeight
from spp_cli.errors import ModelError
from spp_cli.models.decoder import Linear
from spp_cli.models.tensor_file import layout_of, write_tensors
from spp_cli.reading import read_json

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "adapted_layers",
    "attach",
    "load_adapter",
    "read_adapter_config",
    "save_adapter",
]

WEIGHTS = "adapter.safetensors"
CONFIG = "adapter_config.json"


def attach(
    model: nn.Module,
    linears: Iterable[Linear],
    method: AdapterMethod,
    masks: Mapping[str, Tensor],
    *,
    packed: bool = False,
) -> None:
    """Put an adapted layer in the place of each linear.

    ``packed``: the pruned weight is kept without its zeros, and the linear itself loses it.
    """
    for linear in linears:
        weight = linear.weight.contiguous()
        asked = packed or method.reads_mask
        keep = masks[linear.name].to(weight.device) if asked else None
        base: FrozenWeight
        if not packed:
            base = DenseWeight(weight, keep)
        else:
            assert keep is not None
            base = PackedWeight(weight, keep)
            gone = torch.empty_like(linear.parameter, device="meta")
            linear.module.weight = nn.Parameter(gone, requires_grad=False)
        linear.replace(model, method.wrap(base, linear.bias))


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """Return the adapted layers of a model by name, in order."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)
    }


def save_adapter(model: nn.Module, folder: Path, description: dict[str, Any]) -> None:
    """Write what trains into ``folder``, and ``description`` (method, base's digests) beside it.

    Of several processes, each of which may hold a part of it, all have to call; one writes.
    """
    tensors = {
        name: processes.whole(parameter.detach()).cpu().contiguous()
        for name, parameter in _parameters(model).items()
    }
    if not processes.is_main():
        return
    folder.mkdir(parents=True, exist_ok=True)
    layouts = {name: layout_of(tensor) for name, tensor in tensors.items()}
    write_tensors(folder / WEIGHTS, layouts, tensors.__getitem__, {})
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n")


def read_adapter_config(folder: Path) -> tuple[AdapterMethod, dict[str, Any]]:
    """Return the adapter's settings, and the whole description that was saved with it."""
    path = folder / CONFIG
    try:
        description = read_json(path)
        module, _, attribute = TABLE[description["adapter"]["name"]].partition(":")
        method = getattr(importlib.import_module(module), attribute)
        return method.model_validate(description["adapter"]), description
    except FileNotFoundError:
        raise ModelError(f"{folder} has no {CONFIG}; it is not an adapter") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is corrupt: {error}. Finetune again: spp finetune --force"
        ) from error


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Fill the attached adapters of ``model`` with the saved ones.

    Raises:
        ModelError: missing or corrupt file, or an adapter for other layers or shapes.
    """
    path = folder / WEIGHTS
    try:
        saved = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is missing or corrupt: {error}. Finetune again: spp finetune --force"
        ) from error
    wanted = _parameters(model)
    for name in wanted.keys() ^ saved.keys():
        where = "the adapter" if name in saved else "the model"
        raise ModelError(f"{path} is for another base: only {where} has {name}")
    for name, parameter in wanted.items():
        if parameter.shape != saved[name].shape:
            raise ModelError(
                f"{path} is for another base: {name} is {tuple(saved[name].shape)}, "
                f"the model's is {tuple(parameter.shape)}"
            )
        parameter.data.copy_(processes.spread(saved[name], parameter))


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains in all adapted layers, by its name in the saved adapter."""
    return {
        f"{layer}.{name}": parameter
        for layer, module in adapted_layers(model).items()
        for name, parameter in module.adapter_parameters().items()
    }
