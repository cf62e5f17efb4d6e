"""Text, JSON, JSON lines and Parquet files, read as plain text or as rows that know their place."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from spp_cli.errors import DataError

__all__ = [
    "Row",
    "files_of",
    "has_rows",
    "is_one_value",
    "is_parquet",
    "line_row",
    "open_bytes",
    "read_rows",
    "read_text",
    "readable",
    "string_of",
]

_ROW_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
_SNIFFED = 8192  # bytes at the start of a file that tell text from binary


class Row(NamedTuple):
    """One row of a data set, and where it stands, as in "train.jsonl:7", for a message about it."""

    place: str
    value: Any


def files_of(path: Path) -> list[Path]:
    """Return ``path``, or if it is a folder all text and row files below it, sorted by name.

    In a folder, hidden files and binary files are passed over.

    Raises:
        DataError: the folder has no such file.
    """
    if not path.is_dir():
        return [path]
    below = sorted(path.rglob("*"), key=lambda file: file.relative_to(path).as_posix())
    visible = (file for file in below if not _is_hidden(file.relative_to(path)) and file.is_file())
    found = [file for file in visible if has_rows(file) or not _is_binary(file)]
    if not found:
        raise DataError(
            f"{path}: no readable file in this folder. Put text, JSON, JSON lines or Parquet there"
        )
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def has_rows(path: Path) -> bool:
    """Tell whether ``path`` is named as JSON, JSON lines or Parquet, gzipped or not."""
    return _plain_name(path).endswith(_ROW_SUFFIXES)


def _plain_name(path: Path) -> str:
    return path.name.lower().removesuffix(".gz")


def _is_binary(path: Path) -> bool:
    with readable(path), open_bytes(path) as stream:
        return b"\0" in stream.read(_SNIFFED)


def open_bytes(path: Path) -> Any:
    """Return a stream of what a file holds, unpacked if it is gzipped."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def read_text(path: Path) -> str:
    """Return a text file's content, line ends as "\\n".

    Raises:
        DataError: it cannot be read, or is not UTF-8 text.
    """
    with _open(path) as stream:
        text = stream.read()
    if "\0" in text:
        raise DataError(f"{path}: a binary file, not text")
    return text


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON, JSON lines or Parquet file in order.

    A ``.json`` file may hold a list, a single object, or JSON lines. Blank lines are passed over.

    Raises:
        DataError: it cannot be read, or a line is not valid JSON.
    """
    if is_parquet(path):
        return _parquet_rows(path)
    return _json_rows(path) if is_one_value(path) else _line_rows(path)


def is_parquet(path: Path) -> bool:
    """Tell whether ``path`` is named as Parquet."""
    return _plain_name(path).endswith(".parquet")


def is_one_value(path: Path) -> bool:
    """Tell whether ``path`` is one JSON value, and not one on each line.

    Raises:
        DataError: it cannot be read.
    """
    if not _plain_name(path).endswith(".json"):
        return False
    with _open(path) as stream:
        first = next((line for line in stream if line.strip()), "")
    if first.lstrip().startswith("["):
        return True
    try:
        json.loads(first)
    except ValueError:
        return True
    return False


def _line_rows(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line := line.strip():
                yield line_row(line, path, number)


def line_row(line: str, path: Path, number: int) -> Row:
    """Return the row on a line of JSON lines.

    Raises:
        DataError: the line is not valid JSON.
    """
    return Row(f"{path}:{number}", _parse(line, path, number))


def _json_rows(path: Path) -> Iterator[Row]:
    value = _parse(read_text(path), path, 1)
    for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
        yield Row(f"{path} row {number}", item)


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # JSONDecodeError, or a number of too many digits
        line = first_line + getattr(error, "lineno", 1) - 1
        reason = getattr(error, "msg", error)
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{path}:{line}: not valid JSON: {str(reason).removesuffix(' at')}{column}"
        ) from None
    except RecursionError:
        raise DataError(f"{path}:{first_line}: JSON that is nested too deep") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    with readable(path), pyarrow.parquet.ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield Row(f"{path} row {number}", value)


def string_of(row: Row, field: str, remedy: str) -> str:
    """Return the text that ``row`` has under the key ``field``; ``remedy`` ends the message if not.

    Raises:
        DataError: the row has no such key, or the value is not text.
    """
    if not isinstance(row.value, Mapping):
        kind = type(row.value).__name__
        raise DataError(f"{row.place}: a {kind}, must be an object with the key '{field}'")
    if field not in row.value:
        keys = ", ".join(map(str, row.value)) or "none"
        raise DataError(f"{row.place}: no key '{field}'; its keys: {keys}. {remedy}")
    text = row.value[field]
    if not isinstance(text, str):
        raise DataError(f"{row.place}: '{field}' is a {type(text).__name__}, must be text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may hold half of a pair, as in "\ud83d"
        raise DataError(
            f"{row.place}: '{field}' has half a surrogate pair at character {error.start}"
        ) from None
    return text


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    with readable(path):
        opener = gzip.open if path.suffix.lower() == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig") as stream:
            yield stream


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever says that ``path`` cannot be read into a DataError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file or folder") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(f"{path}: not UTF-8 text: byte 0x{byte:02x}. A binary file?") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from None
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a valid Parquet file: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
