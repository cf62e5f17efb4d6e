"""Parquet and Arrow as batches of what rows may hold: text, numbers, lists and objects of them.

A column of dates, or of bytes, is no text and no turn of a chat: its values are not read at all,
so that one that Python has no date for does no harm. The row says what is there in its place.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.ipc  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from spp_cli.data.kinds import kind_of
from spp_cli.data.streams import compression_of, readable, seekable

__all__ = ["Columns", "Unread", "in_place", "open_columns"]


@dataclass(frozen=True)
class Unread:
    """What stands in a row for a value of a column that is not read; ``kind`` says what it is."""

    kind: str


@dataclass(frozen=True)
class Columns:
    """The batches of a file in order, their schema, and the columns that are left out, by name."""

    schema: Any
    batches: Iterator[Any]
    unread: dict[str, Unread]


@contextmanager
def open_columns(
    path: Path, *, only: Collection[str] = (), scratch: Path | None = None
) -> Iterator[Columns]:
    """Open a Parquet or Arrow file; ``only`` names the columns to read, if it has them all.

    Raises:
        DataError: it cannot be read.
    """
    with readable(path), _source(path, scratch) as stream:
        if kind_of(path) == "parquet":
            with pyarrow.parquet.ParquetFile(stream) as file:
                schema, unread = _chosen(file.schema_arrow, only)
                raw = file.iter_batches(columns=schema.names)
                yield Columns(schema, _plain_batches(raw, schema), unread)
            return
        raw, found = _arrow_batches(stream)
        schema, unread = _chosen(found, only)
        yield Columns(schema, _plain_batches(raw, schema), unread)


def _source(path: Path, scratch: Path | None) -> Any:
    """Return the file for pyarrow: its own kind reads no more than it is asked for."""
    is_plain = compression_of(path) is None
    return pyarrow.OSFile(str(path)) if is_plain else seekable(path, scratch)


def in_place(columns: Columns, scratch: Path | None) -> Any:
    """Return all rows as a table that lies in an unnamed file, mapped into memory."""
    with tempfile.TemporaryFile(dir=scratch) as unpacked:
        with pyarrow.ipc.new_file(unpacked, columns.schema) as writer:
            for batch in columns.batches:
                writer.write_batch(batch)
        unpacked.flush()
        mapped = mmap.mmap(unpacked.fileno(), 0, access=mmap.ACCESS_READ)
    return pyarrow.ipc.open_file(pyarrow.py_buffer(mapped)).read_all()


def _arrow_batches(stream: Any) -> tuple[Iterator[Any], Any]:
    """Return the batches of Arrow's file or stream format, and the schema."""
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    if not is_file:
        reader = pyarrow.ipc.open_stream(stream)
        return iter(reader), reader.schema
    reader = pyarrow.ipc.open_file(stream)
    numbers = range(reader.num_record_batches)
    return (reader.get_batch(number) for number in numbers), reader.schema


def _chosen(schema: Any, only: Collection[str]) -> tuple[Any, dict[str, Unread]]:
    """Return the schema of what is read, in plain types, and the columns that are not."""
    if only and set(only) <= set(schema.names):
        fields = [schema.field(name) for name in only]
        return pyarrow.schema([field.with_type(_plain(field.type)) for field in fields]), {}
    kinds = {field.name: _why_unread(field.type) for field in schema}
    if all(kinds.values()):  # no column says how many rows there are
        kinds = dict.fromkeys(kinds, "")
    read = [field.with_type(_plain(field.type)) for field in schema if not kinds[field.name]]
    unread = {name: Unread(kind) for name, kind in kinds.items() if kind}
    return pyarrow.schema(read), unread


def _plain_batches(batches: Iterator[Any], schema: Any) -> Iterator[Any]:
    for batch in batches:
        arrays = [
            _cast(batch.column(batch.schema.get_field_index(field.name)), field.type)
            for field in schema
        ]
        yield pyarrow.record_batch(arrays, schema=schema)


def _cast(array: Any, wanted: Any) -> Any:
    if isinstance(array, pyarrow.ExtensionArray):
        array = array.storage
    return array if array.type == wanted else array.cast(wanted)


def _why_unread(kind: Any) -> str:
    """Return what the values of a type are, if no row is made of them; nothing if it may be."""
    types = pyarrow.types
    if types.is_temporal(kind) or types.is_interval(kind):
        return "a date or time"
    if types.is_decimal(kind):
        return "a decimal"
    return "binary" if _has_bytes(kind) else ""


def _has_bytes(kind: Any) -> bool:
    types = pyarrow.types
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _has_bytes(kind.storage_type)
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return True
    return any(map(_has_bytes, _inner(kind)))


def _inner(kind: Any) -> Sequence[Any]:
    """Return the types that a nested one is made of."""
    types = pyarrow.types
    if types.is_dictionary(kind):
        return [kind.value_type]
    return [kind.field(number).type for number in range(kind.num_fields)]


def _plain(kind: Any) -> Any:
    """Return the type as which values are read: without dictionaries, times as whole numbers."""
    types = pyarrow.types
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _plain(kind.storage_type)
    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    if types.is_temporal(kind) and not types.is_interval(kind):
        return pyarrow.int32() if kind.bit_width == 32 else pyarrow.int64()
    if types.is_list(kind) or types.is_fixed_size_list(kind):
        return pyarrow.list_(_plain(kind.value_type))
    if types.is_large_list(kind):
        return pyarrow.large_list(_plain(kind.value_type))
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_plain(field.type)) for field in kind])
    return kind
