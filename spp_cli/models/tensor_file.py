"""One safetensors file, read and written tensor by tensor.

The library's own reader maps the file into memory, and what was touched of the map counts as memory
of the process: reading a 140 GB model block by block would look, and on a full machine act, as if
the whole of it were loaded; its writer wants all tensors at once. Here a tensor takes its own bytes
and no more.

Format: 8 bytes of little-endian header length, the header in JSON, then the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from spp_cli.atomic_files import UnfinishedFile
from spp_cli.deferred import Tensor, torch
from spp_cli.reading import LARGEST, check_regular, parse_json

__all__ = [
    "Layout",
    "TensorFile",
    "begin_tensors",
    "bytes_of",
    "layout_of",
    "whole_file",
    "write_tensors",
]

Layout = tuple[tuple[int, ...], "torch.dtype"]  # shape and type

_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "C64": "complex64",
}
# Of types that torch has not, or not everywhere, the bits; their tensors can be named, not read.
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
_MOST = 2**62  # values of a tensor: torch counts no further, and multiplies what is not zero


@cache
def _dtypes() -> dict[str, torch.dtype]:
    """Return torch's type for each code of the format."""
    return {code: getattr(torch, name) for code, name in _NAMES.items()}


def _width(code: str) -> int:
    """Return the bits of one value of a type that torch has, which its code tells: BF16, C64."""
    return 8 if code == "BOOL" else int(re.findall(r"\d+", code)[0])


@cache
def _codes() -> dict[torch.dtype, str]:
    return {dtype: code for code, dtype in _dtypes().items()}


class TensorFile:
    """The tensors of one file by name; only the header is read at first.

    Raises:
        ValueError: the file is truncated or is not safetensors.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_regular(path)
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            if length > LARGEST:
                raise ValueError(f"a header of {length:,} bytes")
            header = parse_json(stream.read(length), _each_once)
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
        metadata = header.pop("__metadata__", None) or {}
        if not _is_text(metadata):
            raise ValueError("its metadata is not text by name")
        self.metadata: dict[str, str] = metadata
        self._start = 8 + length
        self._entries = header
        try:
            for name in header:
                self._check(name)
        except (KeyError, TypeError) as error:
            raise ValueError(f"its header is damaged: {error}") from error
        self._check_offsets(size)

    def _check(self, name: str) -> None:
        entry = self._entries[name]
        begin, end = entry["data_offsets"]
        if not _are_counts([begin, end]):
            raise ValueError(f"{name} is at {begin!s:.40} to {end!s:.40} of the file")
        shape = entry["shape"]
        if not _are_counts(shape) or math.prod(filter(None, shape)) > _MOST:
            raise ValueError(f"{name} has the shape {shape!s:.60}")
        code = self.type_code(name)
        if code not in _NAMES and code not in _BITS:
            raise ValueError(f"{name} is of the unknown type {code!r}")
        bits = _BITS.get(code) or _width(code)
        if 8 * (end - begin) != math.prod(self.shape(name)) * bits:
            raise ValueError(f"the bytes of {name} are not all there")

    def _check_offsets(self, size: int) -> None:
        """Refuse bytes that are of two tensors, or of none: the library reads no such file."""
        end, before = 0, "the header"
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1]["data_offsets"]):
            if entry["data_offsets"][0] != end:
                how = "overlap" if entry["data_offsets"][0] < end else "leave a gap"
                raise ValueError(f"the bytes of {before} and {name} {how}")
            end, before = entry["data_offsets"][1], name
        if self._start + end != size:
            problem = "are not all there" if self._start + end > size else "are not the last"
            raise ValueError(f"the bytes of {before} {problem}")

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """Return the names of the tensors, in the order of the header."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return tuple(self._entries[name]["shape"])

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's type without reading it."""
        return _dtypes()[self.type_code(name)]

    def type_code(self, name: str) -> str:
        """Return a tensor's type as the file has it, "BF16": of those too that cannot be read."""
        return str(self._entries[name]["dtype"])

    def layout(self, name: str) -> Layout:
        """Return a tensor's shape and type without reading it."""
        return self.shape(name), self.dtype(name)

    def place(self, name: str) -> int:
        """Return where a tensor's bytes begin in the file."""
        return self._start + int(self._entries[name]["data_offsets"][0])

    def read(self, name: str, index: int | None = None) -> Tensor:
        """Return one tensor, or what is at ``index`` of its first axis, in memory of its own.

        Raises:
            OSError: the file cannot be read, or has become shorter.
        """
        begin, end = self._entries[name]["data_offsets"]
        shape = self.shape(name)
        if index is not None:
            count, shape = shape[0], shape[1:]
            assert 0 <= index < count, name
            size = (end - begin) // count
            begin, end = begin + index * size, begin + (index + 1) * size
        tensor = torch.empty(shape, dtype=self.dtype(name))
        if end > begin:
            buffer = bytes_of(tensor)
            with self.path.open("rb", buffering=0) as stream:
                stream.seek(self._start + begin)
                while buffer:
                    count = stream.readinto(buffer)
                    if not count:
                        raise OSError(f"{self.path} ends in the middle of {name}")
                    buffer = buffer[count:]
        return tensor


def _is_text(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(isinstance(it, str) for it in metadata.values())


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(it) is int and it >= 0 for it in values)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"its header has {twice!r} twice")
    return found


def whole_file(path: Path) -> TensorFile | None:
    """Return the file at ``path``; None if it is not there, not whole, or not safetensors."""
    try:
        return TensorFile(path)
    except (OSError, ValueError):
        return None


def write_tensors(
    path: Path,
    layouts: Mapping[str, Layout],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write the tensors that ``read`` returns, one at a time; a kill leaves all of it or nothing.

    ``layouts`` tells the shape and type of each beforehand, so that each is read only once. Equal
    contents make equal files.
    """
    begin_tensors(path, layouts, read, metadata).finish()


def begin_tensors(
    path: Path,
    layouts: Mapping[str, Layout],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> UnfinishedFile:
    """Do what ``write_tensors`` does, but for the wait for the disk: that is left to ``finish``."""
    entries: dict[str, dict[str, Any]] = {
        name: {"dtype": _codes()[dtype], "shape": list(shape)}
        for name, (shape, dtype) in layouts.items()
    }
    widths = {name: dtype.itemsize for name, (_, dtype) in layouts.items()}
    # The widest types come first, so that every tensor begins on a multiple of its own width.
    order = sorted(entries, key=lambda name: -widths[name])
    offset = 0
    for name in order:
        size = math.prod(entries[name]["shape"]) * widths[name]
        entries[name]["data_offsets"] = [offset, offset + size]
        offset += size
    header = {"__metadata__": dict(metadata), **{name: entries[name] for name in order}}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin on a multiple of 8

    def write(stream: BinaryIO) -> None:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in order:
            tensor = read(name)
            assert layout_of(tensor) == (tuple(layouts[name][0]), layouts[name][1]), name
            stream.write(bytes_of(tensor.contiguous()))

    return UnfinishedFile(path, write)


def layout_of(tensor: Tensor) -> Layout:
    """Return shape and type of a tensor in memory."""
    return tuple(tensor.shape), tensor.dtype


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU, writable, as bytes."""
    view: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return view
