"""A model folder as an archive: its zeros left out, every bit of it brought back by unpacking.

Beside the copied files there is one ``NAME.packed.safetensors`` for each ``NAME.safetensors``. A
tensor is in it as it was, or as its values and, unless they are the keep mask's, the bits that say
where they go. The names in their order and a SHA-256 of each tensor stand in its metadata.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from spp_cli.atomic_files import new_folder
from spp_cli.errors import ModelError
from spp_cli.models.checkpoint import INDEX
from spp_cli.models.companions import companions
from spp_cli.models.origin import licence_files
from spp_cli.models.tensor_file import Layout, TensorFile, bytes_of, write_tensors
from spp_cli.reading import parse_json
from spp_cli.sparsity.masks import FILE_NAME, KeepMasks, packed_size
from spp_cli.sparsity.packing import Packed, pack_weight, unpack_weight
from spp_cli.sparsity.verify import RECORD

__all__ = ["pack_folder", "unpack_folder"]

_PLAIN, _PACKED = ".safetensors", ".packed.safetensors"
_VALUES, _BITS = "#values", "#bits"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # by bytes of an element


def pack_folder(source: Path, target: Path) -> tuple[int, int]:
    """Write a model folder into the folder ``target``, its weights packed; what was there is gone.

    What does not belong to the model, such as a run's own records, stays behind.

    Returns the bytes of the model files before and after, the keep masks counted in both.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    masks = _masks_of(source)
    before = after = 0
    belonging = [*(source / name for name in companions(source)), *licence_files(source)]
    belonging += [*source.glob(f"*{_PLAIN}"), source / RECORD, source / INDEX]
    for path in sorted(path for path in belonging if path.is_file()):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        if path.suffix == _PLAIN and path.name != FILE_NAME:
            copy = target / (path.stem + _PACKED)
            _pack_file(TensorFile(path), copy, masks)
        else:
            shutil.copyfile(path, copy)
        if path.suffix == _PLAIN:
            before, after = before + path.stat().st_size, after + copy.stat().st_size
    return before, after


def unpack_folder(source: Path, target: Path) -> None:
    """Write the folder that was packed into ``source`` to ``target``, whole or not at all.

    Raises:
        ConfigError: ``target`` is there already, or another process is making it.
        ModelError: ``source`` is no archive, or is damaged.
    """
    if not any(source.glob(f"*{_PACKED}")):
        raise ModelError(
            f"{source} is no archive: it has no *{_PACKED}. Make one with: spp merge --packed"
        )
    with new_folder(target) as unfinished:
        masks = _masks_of(source)
        at_the_top = {path.name for path in source.iterdir() if path.is_file()}
        for name in sorted({*at_the_top, *companions(source)}):
            if name.endswith(_PACKED):
                plain = unfinished / (name.removesuffix(_PACKED) + _PLAIN)
                _unpack_file(source / name, plain, masks)
            else:
                (unfinished / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source / name, unfinished / name)


def _masks_of(folder: Path) -> KeepMasks | None:
    return KeepMasks(folder) if (folder / FILE_NAME).exists() else None


def _pack_file(source: TensorFile, path: Path, masks: KeepMasks | None) -> None:
    layouts: dict[str, Layout] = {}
    shapes: dict[str, list[int]] = {}
    digests: dict[str, str] = {}
    for name in source.names():
        tensor = source.read(name)
        digests[name] = _digest(tensor)
        keep, is_mask = _places(name, tensor, masks)
        count, own = int(keep.count_nonzero()), 0 if is_mask else packed_size(keep.shape)
        if count * tensor.element_size() + own >= tensor.numel() * tensor.element_size():
            layouts[name] = source.layout(name)
            continue
        shapes[name] = list(tensor.shape)
        layouts[name + _VALUES] = (count,), tensor.dtype
        if own:
            layouts[name + _BITS] = (own,), torch.uint8

    def read(part: str) -> Tensor:  # anew, so that one tensor at a time is in memory
        name, mark, kind = part.rpartition("#")
        if not mark or name not in shapes:
            return source.read(part)
        tensor = source.read(name)
        packed = pack_weight(tensor, _places(name, tensor, masks)[0])
        return packed.values if mark + kind == _VALUES else packed.bits

    document = {
        "format": 1,
        "metadata": source.metadata,
        "digests": digests,  # by name, in the order of the file
        "shapes": shapes,
    }
    write_tensors(path, layouts, read, {"packed": json.dumps(document)})


def _places(name: str, tensor: Tensor, masks: KeepMasks | None) -> tuple[Tensor, bool]:
    """Return where values are to be kept, and whether it is the keep mask that says so."""
    integers = _INTEGERS.get(tensor.element_size())
    if not (integers and tensor.dim() == 2):
        return torch.ones(tensor.shape, dtype=torch.bool), False
    filled = tensor.view(integers) != 0  # the zero with a minus sign is a value
    linear = name.removesuffix(".weight")
    if masks is not None and masks.shapes.get(linear) == tuple(tensor.shape):
        keep = masks[linear]
        if not (filled & ~keep).any():
            return keep, True
    return filled, False


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(bytes_of(tensor)).hexdigest()


def _unpack_file(path: Path, target: Path, masks: KeepMasks | None) -> None:
    try:
        source = TensorFile(path)
        document = parse_json(source.metadata["packed"])
        shapes, digests = document["shapes"], document["digests"]

        def layout(name: str) -> Layout:
            if name not in shapes:
                return source.layout(name)
            return tuple(shapes[name]), source.dtype(name + _VALUES)

        def read(name: str) -> Tensor:
            tensor = _unpacked(source, name, shapes.get(name), masks)
            if _digest(tensor) != digests[name]:
                raise ValueError(f"{name} is not what was packed")
            return tensor

        layouts = {name: layout(name) for name in digests}
        write_tensors(target, layouts, read, document["metadata"])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{path} is damaged: {error}. Copy the archive anew") from error


def _unpacked(
    source: TensorFile, name: str, shape: Sequence[int] | None, masks: KeepMasks | None
) -> Tensor:
    if shape is None:
        return source.read(name)
    values = source.read(name + _VALUES)
    if name + _BITS in source:
        return unpack_weight(Packed(values, source.read(name + _BITS)), shape)
    if masks is None:
        raise ValueError(f"{name} needs {FILE_NAME}, which is not there")
    return unpack_weight(Packed(values, masks.packed(name.removesuffix(".weight"))), shape)
