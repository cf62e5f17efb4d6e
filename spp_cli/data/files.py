"""Files of text or of rows: each read as what it is, whatever its name, a row with its place."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from spp_cli.data.columns import Unread, open_columns
from spp_cli.data.kinds import delimiter_of, kind_of
from spp_cli.data.streams import head_of, not_readable, open_text, plain_name
from spp_cli.errors import DataError
from spp_cli.reading import parse_json

__all__ = [
    "Row",
    "described",
    "is_null",
    "line_row",
    "read_rows",
    "read_text",
    "row_of_columns",
    "string_of",
]


class Row(NamedTuple):
    """One row of a data set, and where it stands, as in "train.jsonl:7", for a message about it."""

    place: str
    value: Any


def read_text(path: Path) -> str:
    """Return a text file's content, line ends as "\\n".

    Raises:
        DataError: it cannot be read, or is no text.
    """
    _refuse_binary(path)
    with open_text(path) as stream:
        text = stream.read()
    if "\0" in text:
        raise DataError(f"{path}: a binary file, not text")
    return text


def _refuse_binary(path: Path) -> None:
    if foreign := not_readable(head_of(path)):
        raise DataError(". ".join(filter(None, (f"{path}: {foreign[0]}", foreign[1]))))


def read_rows(path: Path, only: Collection[str] = ()) -> Iterator[Row]:
    """Yield the rows of a file of JSON, JSON lines, CSV, Parquet or Arrow in order.

    A ``.json`` file may hold a list, a single object, or JSON lines. Blank lines are passed over.
    ``only`` names the columns that are needed of a file that is stored by columns; if it lacks one
    of them, all are read.

    Raises:
        DataError: it cannot be read, or a line is not valid.
    """
    kind = kind_of(path)
    if kind in ("parquet", "arrow"):
        return _column_rows(path, only)
    if kind == "csv":
        return _table_rows(path)
    return _json_rows(path) if kind == "json" else _line_rows(path)


def _line_rows(path: Path) -> Iterator[Row]:
    _refuse_binary(path)
    with open_text(path) as stream:
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
        return parse_json(text)
    except ValueError as error:  # JSONDecodeError, or a number of too many digits
        line = first_line + getattr(error, "lineno", 1) - 1
        reason = getattr(error, "msg", error)
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{path}:{line}: not valid JSON: {str(reason).removesuffix(' at')}{column}"
        ) from None


def _table_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a table whose first row names its columns; every value is text."""
    _refuse_binary(path)
    csv.field_size_limit(sys.maxsize)  # of all readers in the process: by default 128 KiB
    with open_text(path, newline="") as stream:
        header = stream.readline()
        named_tabs = plain_name(path).endswith((".tsv", ".tab"))
        delimiter = "\t" if named_tabs else delimiter_of(header)
        reader = csv.reader(chain([header], stream), delimiter=delimiter, strict=True)
        names: list[str] | None = None
        line = 1
        while True:
            try:
                values = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{path}:{line}: not a valid table: {error}") from None
            if values is None:
                return
            place, line = f"{path}:{line}", reader.line_num + 1
            if not values:
                continue
            if names is None:
                names = _column_names(values, path)
            elif len(values) != len(names):
                raise DataError(
                    f"{place}: {len(values)} values, and the first line names {len(names)} "
                    f"columns. Quote a value that has {delimiter!r} or a line end in it"
                )
            else:
                yield Row(place, dict(zip(names, values, strict=True)))


def _column_names(values: list[str], path: Path) -> list[str]:
    names = [name.strip() for name in values]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}:1: two columns are named {twice!r}. Rename one")
    return names


def _column_rows(path: Path, only: Collection[str]) -> Iterator[Row]:
    number = 0
    with open_columns(path, only=only) as columns:
        for batch in columns.batches:
            for value in batch.to_pylist():
                number += 1
                yield row_of_columns(path, number, value, columns.unread)


def row_of_columns(
    path: Path, number: int, value: dict[str, Any], unread: Mapping[str, Unread]
) -> Row:
    """Return row ``number`` of a file stored by columns, with what stands for those not read."""
    return Row(f"{path} row {number}", {**value, **unread})


def string_of(row: Row, field: str, remedy: str) -> str:
    """Return the text that ``row`` has under the key ``field``; ``remedy`` ends the message if not.

    Raises:
        DataError: the row has no such key, or the value is not text.
    """
    if not isinstance(row.value, Mapping):
        found = described(row.value)
        raise DataError(f"{row.place}: {found}, must be an object with the key '{field}'")
    if field not in row.value:
        keys = ", ".join(map(str, row.value)) or "none"
        raise DataError(f"{row.place}: no key '{field}'; its keys: {keys}. {remedy}")
    text = row.value[field]
    if not isinstance(text, str):
        raise DataError(f"{row.place}: '{field}' is {described(text)}, must be text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may hold half of a pair, as in "\ud83d"
        raise DataError(
            f"{row.place}: '{field}' has half a surrogate pair at character {error.start}"
        ) from None
    return text


def is_null(row: Row, field: str) -> bool:
    """Tell whether a row has the key ``field`` and nothing there: null, or pandas' NaN."""
    value = row.value.get(field, "") if isinstance(row.value, Mapping) else ""
    return value is None or (isinstance(value, float) and value != value)


def described(value: Any) -> str:
    """Return what a value of a row is, in the words of JSON, with its article."""
    if isinstance(value, Unread):
        return value.kind
    if value is None:
        return "null"
    words = {str: "text", bool: "true or false", int: "a number", float: "a number"}
    words |= {list: "a list", dict: "an object", bytes: "binary"}
    return words.get(type(value), f"a {type(value).__name__}")
