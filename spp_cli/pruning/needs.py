"""What pruning a model will take of GPU, memory and disk: counted, not tried.

The sums follow what the engine holds at the same time: the parts outside the blocks, one block,
one batch on its way through it (in one pass: all batches), the statistics and what the method makes
of them, the layers of the block until they are written, and the hidden states of all batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from spp_cli.models.activations import Offload
from spp_cli.models.decoder import Decoder, Linear
from spp_cli.pruning.method import PruningMethod
from spp_cli.pruning.statistics import Statistic
from spp_cli.recovering.recovery import Recovery

__all__ = [
    "CalibrationSize",
    "Needs",
    "held_in_one_pass",
    "hidden_states",
    "measuring_needs",
    "prune_needs",
]

_FLOAT32 = 4
# What kernels keep, and gaps in the heap: 25 to 60 MiB as measured, on small models.
_BESIDE_TENSORS = 32 << 20


@dataclass(frozen=True)
class CalibrationSize:
    """How much text flows: all of it, and at once. None of it if no statistic is asked for."""

    samples: int
    length: int
    batch_size: int

    @property
    def tokens(self) -> int:
        return self.samples * self.length

    @property
    def tokens_at_once(self) -> int:
        return min(self.samples, self.batch_size) * self.length


@dataclass(frozen=True)
class Needs:
    """Bytes on the device, in CPU memory beyond what Python and its libraries take, and on disk."""

    device: int
    memory: int
    disk: int
    read: int
    written: int

    def keeping(self, states: int, offload: Offload, on_gpu: bool) -> Needs:
        """Return what it takes to keep so many bytes of hidden states besides."""
        if offload == "disk":
            return replace(self, disk=self.disk + states)
        if offload == "device" and on_gpu:
            return replace(self, device=self.device + states)
        return replace(self, memory=self.memory + states)

    def after(self, earlier: Needs) -> Needs:
        """Return what both take, one after the other."""
        return Needs(
            device=max(self.device, earlier.device),
            memory=max(self.memory, earlier.memory),
            disk=max(self.disk, earlier.disk),
            read=self.read + earlier.read,
            written=self.written + earlier.written,
        )


def hidden_states(tokens: int, config: Any, dtype: torch.dtype = torch.float32) -> int:
    """Return the bytes of what flows between two blocks of a model with ``config``."""
    return int(tokens * config.get_text_config().hidden_size * dtype.itemsize)


def held_in_one_pass(
    tokens: int, linears: Sequence[Linear], kinds: Iterable[type[Statistic]]
) -> int:
    """Return the bytes that suspended forwards of ``tokens`` hold within a block with ``linears``.

    Of each token about the block's input, the residual and the normed states, and the widest input;
    twice, if one of the statistics to collect ``reads_dense``.
    """
    widths = [linear.in_features for linear in linears]
    ways = 2 if any(kind.reads_dense for kind in kinds) else 1
    return ways * tokens * (3 * min(widths) + max(widths)) * _FLOAT32


def prune_needs(
    decoder: Decoder,
    linears: Sequence[Linear],
    method: PruningMethod,
    recovery: Recovery,
    kinds: Sequence[type[Statistic]],
    calibration: CalibrationSize | None,
    *,
    keeps_statistics: bool,
    order: str,
    offload: Offload,
    on_gpu: bool,
    compute: torch.dtype,
    stored: torch.dtype,
) -> Needs:
    """Return what pruning ``linears`` will take at its peak.

    Args:
        decoder: of a model without weights.
        kinds: the statistics that are collected of every input.
        keeps_statistics: whether those of all blocks are kept on disk.
        compute: the type of weights and activations on the device.
        stored: the type of the weights in the checkpoint.
    """
    blocks = decoder.by_block(linears)
    whole = _size(decoder.model) * stored.itemsize
    block = _largest_block(decoder)
    pruned = [sum(linear.weight.numel() for linear in chosen) for chosen in blocks]
    masks = sum(pruned) // 8

    groups = [_by_input(chosen) for chosen in blocks]
    on_device = (
        block * compute.itemsize
        + method.block_workspace(max(pruned))
        + max(
            max(
                method.workspace(sum(len(linear.weight) for linear in group), group[0].in_features),
                *(recovery.workspace(*linear.weight.shape) for linear in group),
            )
            for of_block in groups
            for group in of_block
        )
    )
    states = saved = 0
    if calibration:
        hidden = decoder.model.config.get_text_config().hidden_size
        widest = max(linear.in_features for linear in linears)
        states = hidden_states(calibration.tokens, decoder.model.config, compute)
        on_device += _shell(decoder) * compute.itemsize
        on_device += calibration.tokens_at_once * (6 * hidden + 5 * widest) * _FLOAT32
        sizes = [
            [_statistics(kinds, group[0].in_features) for group in of_block] for of_block in groups
        ]
        if keeps_statistics:  # of a Gram matrix, which is most of it, one triangle
            saved = sum(map(sum, sizes)) // 2
        if order == "one-pass":
            on_device += max(map(max, filter(None, sizes)))
            on_device += held_in_one_pass(calibration.tokens, linears, kinds)
        else:
            on_device += max(map(sum, sizes))
    kept = max(pruned) * (stored.itemsize + 1)  # weights and masks of a block until it is written
    needs = Needs(
        device=on_device if on_gpu else 0,
        memory=_BESIDE_TENSORS + kept + (0 if on_gpu else on_device),
        disk=whole + masks + saved,
        read=whole * (2 if saved else 1) + saved,
        written=whole + masks + saved,
    )
    return needs.keeping(states, offload, on_gpu)


def measuring_needs(
    decoder: Decoder,
    linears: Sequence[Linear],
    *,
    passes: int,
    tokens_kept: int,
    length: int,
    offload: Offload,
    on_gpu: bool,
    compute: torch.dtype,
    stored: torch.dtype,
) -> Needs:
    """Return what it takes to measure how much each of ``linears`` is to lose.

    Gradients keep the inputs of all blocks. Beside them there is either the head, with the logits
    of one sequence and their gradients, or a block with its activations and the gradients of its
    linears. What takes none goes block by block as pruning does, and holds no more.

    Args:
        passes: how many times each block is read.
        tokens_kept: those whose hidden states are kept for gradients; 0 if none are taken.
        length: of a sequence, in tokens.

    The others are those of ``prune_needs``.
    """
    read = passes * _size(decoder.model) * stored.itemsize
    if not tokens_kept:
        return Needs(device=0, memory=0, disk=0, read=read, written=0)
    config = decoder.model.config.get_text_config()
    head = _size(decoder.model) - _size(decoder.model.base_model)
    logits = length * config.vocab_size * (compute.itemsize + 3 * _FLOAT32)
    widest = max(linear.in_features for linear in linears)
    block = _largest_block(decoder) + max(
        sum(linear.weight.numel() for linear in inside) for inside in decoder.by_block(linears)
    )
    largest = max(linear.weight.numel() for linear in linears)
    in_block = block * compute.itemsize + largest * _FLOAT32
    in_block += length * (12 * config.hidden_size + 6 * widest) * _FLOAT32
    on_device = _shell(decoder) * compute.itemsize
    on_device += max(head * compute.itemsize + logits, in_block)
    needs = Needs(
        device=on_device if on_gpu else 0,
        memory=_BESIDE_TENSORS + (0 if on_gpu else on_device),
        disk=0,
        read=read,
        written=0,
    )
    states = hidden_states(tokens_kept, decoder.model.config, compute)
    return needs.keeping(states, offload, on_gpu)


def _size(module: nn.Module) -> int:
    """Return how many parameters there are; tied ones are counted once."""
    return sum(tensor.numel() for tensor in module.parameters())


def _largest_block(decoder: Decoder) -> int:
    return max(map(_size, decoder.blocks))


def _shell(decoder: Decoder) -> int:
    """Return how many parameters lie outside the blocks, without the head."""
    return _size(decoder.model.base_model) - sum(map(_size, decoder.blocks))


def _by_input(linears: Sequence[Linear]) -> list[list[Linear]]:
    """Return linears of one block by input, as far as names and widths tell without a forward."""
    groups: dict[tuple[str, int], list[Linear]] = {}
    for linear in linears:
        groups.setdefault((linear.name.rpartition(".")[0], linear.in_features), []).append(linear)
    return list(groups.values())


def _statistics(kinds: Sequence[type[Statistic]], in_features: int) -> int:
    return sum(kind.elements(in_features) for kind in kinds) * _FLOAT32
