"""Rows by number are the rows in order, whatever the file, and are not in memory as a whole."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spp_cli.data.files import Row, read_rows
from spp_cli.data.tables import joined, rows_by_number, texts_by_number
from spp_cli.errors import DataError

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
KINDS = [
    "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.jsonl.bz2", "a.utf16.jsonl",
    "a.utf16.jsonl.gz", "a.json", "one.json", "one.json.gz", "a.csv", "a.tsv.zst", "a.parquet",
    "a.parquet.gz", "a.arrow", "a.stream.arrow", "a.arrow.zst",
]  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    """Write rows as the name says: the format, the encoding, and what it is compressed with."""
    content = (json.dumps(rows) if "one" in path.name else lines_of(rows)).encode()
    if ".utf16" in path.name:
        content = lines_of(rows).encode("utf-16")
    elif ".csv" in path.name or ".tsv" in path.name:
        content = table_of(rows, "\t" if ".tsv" in path.name else ",")
    elif ".parquet" in path.name or ".arrow" in path.name:
        content = columns_of(rows, path.name)
    compress = {
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".bz2": bz2.compress,
        ".zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
    }.get(path.suffix, bytes)
    path.write_bytes(compress(content))
    return path


def lines_of(rows: list[Any]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n\n" for row in rows)


def table_of(rows: list[Any], delimiter: str) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def columns_of(rows: list[Any], name: str) -> bytes:
    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    if ".parquet" in name:
        pyarrow.parquet.write_table(table, sink, row_group_size=3)
    else:
        make = pyarrow.ipc.new_stream if ".stream" in name else pyarrow.ipc.new_file
        with make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=15)
@given(rows=st.lists(st.fixed_dictionaries({"text": texts, "id": texts}), min_size=1, max_size=8))
def test_rows_by_number_are_those_that_are_read_in_order(
    name: str, rows: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("rows") / name, rows)
    table = rows_by_number(path)
    assert list(table) == list(read_rows(path))
    assert [row.value for row in table] == rows
    assert table[-1] == table[len(table) - 1]
    assert [row.value for row in reversed(table)] == rows[::-1]
    with pytest.raises(IndexError):
        table[len(rows)]


def test_several_files_are_one_table(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("three")
    tables = [
        rows_by_number(write(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])),
        texts_by_number([tmp_path / "c.txt"], "text"),
        rows_by_number(write(tmp_path / "d.parquet", [{"text": "four"}])),
    ]
    found = joined(tables)
    assert [row.value["text"] for row in found] == ["one", "two", "three", "four"]
    assert [row.value["text"] for row in found[1:3]] == ["two", "three"]
    assert found[2] == Row(str(tmp_path / "c.txt"), {"text": "three"})
    assert len(joined([])) == 0


def test_a_mark_of_byte_order_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}')
    assert [row.value["text"] for row in rows_by_number(path)] == ["one", "two"]


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.utf16.jsonl", "a.csv", "a.parquet", "a.arrow"],
)
def test_a_large_file_takes_little_memory(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, [{"text": f"{number} " * 200} for number in range(8000)])
    tracemalloc.start()
    table = rows_by_number(path)
    assert table[7999].value["text"].startswith("7999 ")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_500_000  # of eight million characters


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": 1}\n{"text"\n', r"a\.jsonl:2: not valid JSON"),
        (b'{"text": 1}\n"\xe9"\n', r"a\.jsonl: not UTF-8 text: byte 0xe9"),
    ],
)
def test_a_broken_line_is_told_with_its_number(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    table = rows_by_number(tmp_path / "a.jsonl")
    assert table[0].value == {"text": 1}
    with pytest.raises(DataError, match=message):
        table[1]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl.gz", b"\x1f\x8b"), ("a.parquet", b"PAR1")])
def test_a_broken_file_is_told_at_once(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: not a (whole gzip|valid Parquet or Arrow) file"):
        rows_by_number(tmp_path / name)
