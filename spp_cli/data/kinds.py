"""What a file is: text, or rows as JSON, JSON lines, CSV, Parquet or Arrow. Its content decides."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TextIO

from spp_cli.data.streams import head_of, not_readable, open_text, plain_name
from spp_cli.reading import parse_json

__all__ = ["Kind", "delimiter_of", "has_rows", "is_named_as_rows", "kind_of"]

Kind = Literal["text", "json", "lines", "csv", "parquet", "arrow", "binary"]

_NAMES: dict[Kind, tuple[str, ...]] = {
    "json": (".json",),
    "lines": (".jsonl", ".ndjson"),
    "csv": (".csv", ".tsv", ".tab"),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
}
# A table of any name is one if it has at least two columns, and one of these among them.
_COLUMNS = {"text", "instruction", "output", "prompt", "completion", "response", "chosen"}
_LIST_OF_OBJECTS = re.compile(r'\s*\[\s*\{\s*"(?:[^"\\]|\\.)*"\s*:')
_LONG_LINE = 1 << 13  # characters; if it does not begin as JSON does, it is no row
_LONGEST_LINE = 1 << 26  # what is longer is no row at all
_STREAM = b"\xff\xff\xff\xff"  # how a stream of Arrow begins, before the length of its schema


def kind_of(path: Path) -> Kind:
    """Return what a file holds: "binary" is what nothing here reads.

    Raises:
        DataError: it cannot be read.
    """
    head = head_of(path)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1") or (head.startswith(_STREAM) and head[6:8] == b"\0\0"):
        return "arrow"
    named = _named(path)
    if named in ("parquet", "arrow"):
        return named  # and not valid, which reading it will say
    if not_readable(head):
        return "binary"
    if named == "json":
        return "json" if _is_one_value(path) else "lines"
    return named or _told_by_content(path)


def has_rows(path: Path) -> bool:
    """Tell whether ``path`` holds rows, and no text of one piece.

    Raises:
        DataError: it cannot be read.
    """
    return kind_of(path) not in ("text", "binary")


def is_named_as_rows(path: Path) -> bool:
    """Tell whether ``path`` is named as a file of rows, compressed or not; it need not be there."""
    return _named(path) is not None


def _named(path: Path) -> Kind | None:
    name = plain_name(path)
    return next((kind for kind, endings in _NAMES.items() if name.endswith(endings)), None)


def _is_one_value(path: Path) -> bool:
    """Tell whether a file of JSON is one value, and not one on each line."""
    with open_text(path) as stream:
        first = next((line for line in stream if line.strip()), "")
    if first.lstrip().startswith("["):
        return True
    try:
        parse_json(first)
    except (ValueError, RecursionError):
        return True
    return False


def _told_by_content(path: Path) -> Kind:
    with suppress(UnicodeDecodeError), open_text(path) as stream:
        lines = _first_lines(stream)
        first, second, third = (next(lines, "") for _ in range(3))
        if _is_object(first) and (not second or _is_object(second)):
            return "lines"
        if _LIST_OF_OBJECTS.match(first + second + third):  # indented or not
            return "json"
        if _is_table(first, second):
            return "csv"
    return "text"


def _first_lines(stream: TextIO) -> Iterator[str]:
    """Yield the lines that are not blank, up to one that is too long for a row."""
    while line := stream.readline(_LONG_LINE):
        if len(line) == _LONG_LINE:
            if not line.lstrip().startswith(("{", "[")):
                return
            line += stream.readline(_LONGEST_LINE)
        if line.strip():
            yield line


def _is_object(line: str) -> bool:
    return line.lstrip().startswith("{") and isinstance(_json(line), dict)


def _is_table(header: str, row: str) -> bool:
    delimiter = delimiter_of(header)
    columns = [name.strip() for name in header.strip().split(delimiter)]
    if len(columns) < 2 or not _COLUMNS.intersection(columns):
        return False
    if not all(name.replace("_", "").replace("-", "").isalnum() for name in columns):
        return False
    # A row may reach over several lines, so that its first has fewer fields than the header.
    quoted = '"' in row
    return quoted or len(next(csv.reader([row], delimiter=delimiter), [])) == len(columns)


def delimiter_of(header: str) -> str:
    """Return what stands between the columns of a table, by its first line."""
    return max(",\t;|", key=header.count)


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        return None
