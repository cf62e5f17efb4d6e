"""Keep masks on disk: one bit a weight, beside the checkpoint they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spp_cli.errors import ModelError

__all__ = ["FILE_NAME", "KeepMasks", "mask_digest", "pack", "save_masks", "unpack"]

FILE_NAME = "keep_masks.safetensors"
_BIT_VALUES = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def pack(keep: Tensor) -> Tensor:
    """Return ``keep`` (any shape, bool) as ⌈numel/8⌉ bytes (uint8), the first weight in bit 0."""
    bits = keep.flatten().to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).view(-1, 8)
    return (bits * _BIT_VALUES.to(bits.device)).sum(dim=1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Return the bool tensor of ``shape`` that ``pack`` made ``packed`` from."""
    bits = packed.unsqueeze(1).bitwise_and(_BIT_VALUES.to(packed.device)) != 0
    return bits.flatten()[: torch.Size(shape).numel()].view(shape)


def mask_digest(packed: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the SHA-256, in hex, over names, shapes and bits; the order does not matter."""
    digest = hashlib.sha256()
    for name in sorted(packed):
        digest.update(f"{name}{list(shapes[name])}".encode())
        digest.update(packed[name].cpu().numpy().tobytes())
    return digest.hexdigest()


def save_masks(
    folder: Path, packed: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> str:
    """Write packed masks by linear name into ``folder``; return their digest."""
    digest = mask_digest(packed, shapes)
    described = {"digest": digest, "shapes": {name: list(shape) for name, shape in shapes.items()}}
    # One key: of several, the library writes the order anew each time; equal masks would differ.
    save_file(dict(packed), folder / FILE_NAME, metadata={"keep_masks": json.dumps(described)})
    return digest


class KeepMasks(Mapping[str, Tensor]):
    """The masks of a folder by linear name: (out_features, in_features) bool, read when asked for.

    Raises:
        ModelError: the file is missing or corrupt.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        try:
            self._file = safe_open(self.path, framework="pt")
            described = json.loads(self._file.metadata()["keep_masks"])
            shapes = described["shapes"]
            self.digest: str = described["digest"]
        except FileNotFoundError:
            raise ModelError(
                f"{folder} has no {FILE_NAME}; only what spp pruned or merged has. Run: spp prune"
            ) from None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{self.path} is corrupt: {error}. Prune again: spp prune --force"
            ) from error
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}

    def __getitem__(self, name: str) -> Tensor:
        return unpack(self.packed(name), self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def is_intact(self) -> bool:
        """Return whether these are the masks whose digest was recorded."""
        return mask_digest({name: self.packed(name) for name in self}, self.shapes) == self.digest

    def packed(self, name: str) -> Tensor:
        """Return the mask of one linear as it is stored, one bit a weight."""
        tensor: Tensor = self._file.get_tensor(name)
        return tensor
