"""Keep masks on disk: one bit a weight, beside the checkpoint they belong to."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from spp_cli.deferred import Tensor, np, torch
from spp_cli.errors import ModelError
from spp_cli.models.tensor_file import TensorFile, write_tensors
from spp_cli.reading import parse_json

__all__ = [
    "FILE_NAME",
    "KeepMasks",
    "LazyMapping",
    "mask_digest",
    "pack",
    "save_masks",
    "unpack",
    "zeroed",
]

FILE_NAME = "keep_masks.safetensors"
_BIT_VALUES = (1, 2, 4, 8, 16, 32, 64, 128)


def zeroed(weight: Tensor, keep: Tensor) -> Tensor:
    """Return ``weight``, float32, with zeros where ``keep`` is False; the rest is bit for bit.

    Both are of one shape. A fill by mask takes five times as long on a CPU as an "and" of bits.
    """
    bits = keep.to(torch.int32).neg_()  # −1 has all bits set
    return bits.bitwise_and_(weight.view(torch.int32)).view(torch.float32)


def pack(keep: Tensor) -> Tensor:
    """Return ``keep`` (any shape, bool) as ⌈numel/8⌉ bytes (uint8), the first weight in bit 0."""
    if keep.device.type == "cpu":
        return torch.from_numpy(np.packbits(keep.numpy(), bitorder="little"))
    bits = keep.flatten().to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).view(-1, 8)
    values = torch.tensor(_BIT_VALUES, dtype=torch.uint8, device=bits.device)
    return (bits * values).sum(dim=1, dtype=torch.uint8)


def packed_size(shape: Sequence[int]) -> int:
    """Return the bytes that ``pack`` makes of a mask of ``shape``."""
    return -(-math.prod(shape) // 8)


def unpack(packed: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Return the bool tensor of ``shape`` that ``pack`` made ``packed`` from."""
    # Eight bools are looked up at once, as the one number that their eight bytes are.
    eights = _eights(packed.device).index_select(0, packed.int())
    return eights.view(torch.bool)[: math.prod(shape)].view(shape)


def _eights(device: torch.device) -> Tensor:
    """Return for each byte the eight bools it stands for, as one int64: (256,)."""
    byte, bit = torch.arange(256, device=device), torch.arange(8, device=device)
    return (byte[:, None] >> bit & 1).bool().view(torch.int64).flatten()


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
    """Write packed masks by linear name into ``folder``, one at a time; return their digest."""
    digest = mask_digest(packed, shapes)
    described = {"digest": digest, "shapes": {name: list(shape) for name, shape in shapes.items()}}
    metadata = {"keep_masks": json.dumps(described)}
    layouts = {name: ((packed_size(shapes[name]),), torch.uint8) for name in packed}
    write_tensors(folder / FILE_NAME, layouts, packed.__getitem__, metadata)
    return digest


class KeepMasks(Mapping[str, "Tensor"]):
    """The masks of a folder by linear name: (out_features, in_features) bool, read when asked for.

    Raises:
        ModelError: the file is missing or corrupt.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        try:
            self._file = TensorFile(self.path)
            described = parse_json(self._file.metadata["keep_masks"])
            shapes = described["shapes"]
            self.digest: str = described["digest"]
            self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
            self._check()
        except FileNotFoundError:
            raise ModelError(
                f"{folder} has no {FILE_NAME}; only what spp pruned or merged has. Run: spp prune"
            ) from None
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{self.path} is corrupt: {error}. Prune again: spp prune --force"
            ) from error

    def _check(self) -> None:
        """Refuse a description that does not fit the tensors of the file."""
        for name, shape in self.shapes.items():
            if name not in self._file:
                raise ValueError(f"no mask of {name}")
            stored = self._file.type_code(name), self._file.shape(name)
            if stored != ("U8", (packed_size(shape),)):
                raise ValueError(f"the mask of {name} is not one of {list(shape)}")
        if extra := sorted(set(self._file.names()) - self.shapes.keys()):
            raise ValueError(f"no shape of {extra[0]}")

    def __getitem__(self, name: str) -> Tensor:
        return unpack(self.packed(name), self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def is_intact(self) -> bool:
        """Return whether these are the masks whose digest was recorded."""
        return mask_digest(self.as_stored(), self.shapes) == self.digest

    def packed(self, name: str) -> Tensor:
        """Return the mask of one linear as it is stored, one bit a weight."""
        return self._file.read(name)

    def as_stored(self) -> Mapping[str, Tensor]:
        """Return the masks packed, one bit a weight, each read when asked for."""
        return LazyMapping(self, self.packed)


class LazyMapping(Mapping[str, "Tensor"]):
    """Tensors by name, each read when asked for."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        self._names = dict.fromkeys(names)
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
