"""The ways to hold the pruned weights of a model, each in the place of its dense linears."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured
from transformers import PreTrainedModel

from spp_cli.adapters.frozen import FrozenLinear, PackedWeight
from spp_cli.models.decoder import Decoder, Linear
from spp_cli.sparsity.masks import packed_size
from spp_cli.sparsity.patterns import NofM

__all__ = ["WAYS", "Hindered", "Store", "hindrance", "keep_masks", "stored_bytes"]

_TWO_OF_FOUR = NofM(2, 4)
_AMPERE = (8, 0)  # the first compute capability whose tensor cores take 2:4

# Holds the linears of a model on a device in one way; returns those that it could.
Store = Callable[[PreTrainedModel, Mapping[str, Tensor], torch.device], list[nn.Module]]


class Hindered(Exception):
    """A way that cannot be gone with this model on this machine; the message says why."""


def keep_masks(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the keep mask of each linear that takes fewer bytes without its zeros.

    ``masks`` are those recorded with the model; what has none is judged by its zeros.
    """
    found = {}
    for linear in Decoder(model).all_linears():
        weight = linear.weight
        keep = masks.get(linear.name, weight != 0)
        dropped = keep.numel() - int(keep.count_nonzero())
        if dropped * weight.element_size() > packed_size(keep.shape):
            found[linear.name] = keep
    return found


def hindrance(way: str, device: torch.device) -> str:
    """Return why a way cannot be gone on ``device``, whatever the model; empty if it can."""
    if way != "2:4":
        return ""
    if device.type != "cuda" or torch.version.hip:
        return f"torch computes it on GPUs of NVIDIA only, and this is {device.type}"
    if (found := torch.cuda.get_device_capability(device)) < _AMPERE:
        return (
            f"the GPU has compute capability {found[0]}.{found[1]}, "
            f"and 2:4 needs {_AMPERE[0]}.{_AMPERE[1]}"
        )
    return ""


def stored_bytes(modules: Iterable[nn.Module]) -> int:
    """Return the bytes that the tensors of ``modules`` take."""
    tensors = (tensor for module in modules for tensor in module.state_dict().values())
    return sum(part.numel() * part.element_size() for tensor in tensors for part in _parts(tensor))


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    """Return the tensors that one is made of: torch's 2:4 has the values and where they go."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [getattr(tensor, name) for name in names]


def _chosen(model: PreTrainedModel, keep: Mapping[str, Tensor]) -> list[Linear]:
    return [linear for linear in Decoder(model).all_linears() if linear.name in keep]


def _dense(
    model: PreTrainedModel, keep: Mapping[str, Tensor], device: torch.device
) -> list[nn.Module]:
    model.to(device)
    return [linear.module for linear in _chosen(model, keep)]


def _packed(
    model: PreTrainedModel, keep: Mapping[str, Tensor], device: torch.device
) -> list[nn.Module]:
    """Before they move to the device, which then never holds the zeros of all of them."""
    packed: list[nn.Module] = []
    for linear in _chosen(model, keep):
        weight = PackedWeight(linear.weight.contiguous(), keep[linear.name])
        packed.append(FrozenLinear(weight, linear.bias))
        linear.replace(model, packed[-1])
    model.to(device)
    return packed


def _semi_structured(
    model: PreTrainedModel, keep: Mapping[str, Tensor], device: torch.device
) -> list[nn.Module]:
    """Those that torch takes; the others stay dense."""
    model.to(device)
    held: list[nn.Module] = []
    reasons = []
    for linear in _chosen(model, keep):
        if reason := _misfit(linear):
            reasons.append(reason)
            continue
        try:
            sparse = to_sparse_semi_structured(linear.weight)
        except RuntimeError as error:  # of a type or shape that torch does not take
            reasons.append(f"{linear.name}: {' '.join(str(error).split())}")
            continue
        linear.module.weight = nn.Parameter(sparse, requires_grad=False)
        held.append(linear.module)
    if not held:
        raise Hindered(reasons[0])
    return held


def _misfit(linear: Linear) -> str:
    """Return why a linear cannot be 2:4 in torch's sense; empty if it can."""
    if linear.transposed:
        return f"{linear.name} is stored transposed"
    weight = linear.weight
    if weight.shape[1] % _TWO_OF_FOUR.of:
        return f"{linear.name} has {weight.shape[1]} inputs, not a multiple of 4"
    if violations := _TWO_OF_FOUR.violations(weight == 0):
        return f"the model is not 2:4: {violations} groups of {linear.name} hold more"
    return ""


WAYS: dict[str, Store] = {"dense": _dense, "packed": _packed, "2:4": _semi_structured}
