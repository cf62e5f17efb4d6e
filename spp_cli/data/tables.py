"""The rows of files by number, each read when it is asked for: no source is in memory as a whole.

A compressed file has no place to jump to, and Parquet is read in large pieces: what either holds
waits in an unnamed file, which goes with the process, killed or not.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, cast, overload

from spp_cli.data.columns import in_place, open_columns
from spp_cli.data.files import Row, line_row, read_rows, read_text, row_of_columns
from spp_cli.data.kinds import kind_of
from spp_cli.data.streams import readable, seekable_lines

__all__ = ["Table", "joined", "rows_by_number", "texts_by_number"]

_BOM = b"\xef\xbb\xbf"


class Table(Sequence[Row]):
    """So many rows, each by its number; ``read`` gets one."""

    def __init__(self, count: int, read: Callable[[int], Row]) -> None:
        self._count = count
        self._read = read

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            numbers = range(self._count)[index]
            return Table(len(numbers), lambda number: self._read(numbers[number]))
        return self._read(range(self._count)[index])


def rows_by_number(path: Path, scratch: Path | None = None) -> Sequence[Row]:
    """Return the rows that ``read_rows`` yields.

    ``scratch`` is the folder of an unnamed file, by default the system's temporary one.

    Raises:
        DataError: it cannot be read; a line that is no JSON is found when it is asked for.
    """
    kind = kind_of(path)
    if kind in ("parquet", "arrow"):
        return _column_table(path, scratch)
    if kind == "csv":  # where a row begins is not seen without reading those before it
        return _spooled(read_rows(path), scratch)
    # One JSON value can only be parsed as a whole.
    return list(read_rows(path)) if kind == "json" else _line_table(path, scratch)


def texts_by_number(files: Sequence[Path], field: str) -> Sequence[Row]:
    """Return each text file as a row that has its text under the key ``field``."""

    def read(number: int) -> Row:
        return Row(str(files[number]), {field: read_text(files[number])})

    return Table(len(files), read)


def joined(tables: Sequence[Sequence[Row]]) -> Sequence[Row]:
    """Return the rows of all tables, in order."""
    ends = list(accumulate(map(len, tables)))

    def read(number: int) -> Row:
        place = bisect_right(ends, number)
        return tables[place][number - (ends[place] - len(tables[place]))]

    return tables[0] if len(tables) == 1 else Table(ends[-1] if ends else 0, read)


def _line_table(path: Path, scratch: Path | None) -> Table:
    stream = seekable_lines(path, scratch)
    begins, numbers = _lines(stream)

    def read(number: int) -> Row:
        with readable(path):
            stream.seek(begins[number])
            line = stream.readline().removeprefix(_BOM).decode("utf-8")
        return line_row(line.strip(), path, numbers[number])

    return Table(len(begins), read)


def _lines(stream: BinaryIO) -> tuple[array[int], array[int]]:
    """Return where each line that is not blank begins, and its number in the file."""
    begins, numbers = array("q"), array("q")
    begin = 0
    for number, line in enumerate(stream, start=1):
        if not line.isspace():
            begins.append(begin)
            numbers.append(number)
        begin += len(line)
    return begins, numbers


def _spooled(rows: Iterable[Row], scratch: Path | None) -> Table:
    """Return rows by number from an unnamed file, where each is a line with its place."""
    stream = cast(BinaryIO, tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115 - open as long as rows are asked for
    begins = array("q")
    for row in rows:
        begins.append(stream.tell())
        stream.write(json.dumps(row).encode() + b"\n")

    def read(number: int) -> Row:
        stream.seek(begins[number])
        return Row(*json.loads(stream.readline()))

    return Table(len(begins), read)


def _column_table(path: Path, scratch: Path | None) -> Table:
    with open_columns(path, scratch=scratch) as columns:
        rows, unread = in_place(columns, scratch), columns.unread

    def read(number: int) -> Row:
        (value,) = rows.slice(number, 1).to_pylist()
        return row_of_columns(path, number + 1, value, unread)

    return Table(rows.num_rows, read)
