"""A sparse weight without its zeros: the values that stay, and one bit a weight that says where.

At 75 % sparsity in bfloat16 that is 0.25 · 2 + 0.125 = 0.625 bytes a weight instead of 2. The mask
of N:M patterns takes one bit a weight as well: at 2:4 a code of its choices needs 0.75 bits, at 2:8
0.625, and is no multiple of bytes to look up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spp_cli.sparsity.masks import pack, unpack

__all__ = ["Packed", "pack_weight", "unpack_weight"]


class Packed(NamedTuple):
    """values: (kept,) in the weight's type, row by row; bits: the mask as ``masks.pack`` has it."""

    values: Tensor
    bits: Tensor


def pack_weight(weight: Tensor, keep: Tensor) -> Packed:
    """Return ``weight`` without what ``keep`` drops; both (out_features, in_features).

    What is dropped comes back as +0, whatever it was.
    """
    return Packed(weight[keep], pack(keep))


def unpack_weight(packed: Packed, shape: Sequence[int]) -> Tensor:
    """Return the weight (out_features, in_features) that ``pack_weight`` was given, bit for bit."""
    weight = torch.zeros(*shape, dtype=packed.values.dtype, device=packed.values.device)
    return weight.masked_scatter_(unpack(packed.bits, tuple(shape)), packed.values)
