"""Files are read to text or to rows, and whatever is wrong with one is said with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.data.files import Row, files_of, read_rows, read_text, string_of
from spp_cli.errors import DataError

ROWS = [{"text": "one"}, {"text": "two ✓"}]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def values(path: Path) -> list[Any]:
    return [row.value for row in read_rows(path)]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@given(rows=st.lists(json_values))
def test_every_json_value_comes_back_in_order(
    rows: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "a.jsonl").write_text(lines(rows), encoding="utf-8")
    (folder / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    assert values(folder / "a.jsonl") == rows == values(folder / "a.json")


def test_rows_are_the_same_in_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(ROWS), encoding="utf-8")
    (tmp_path / "lines.json").write_text(lines(ROWS), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    with gzip.open(tmp_path / "c.json.gz", "wt", encoding="utf-8") as stream:
        stream.write(lines(ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "d.parquet")
    assert [values(file) for file in files_of(tmp_path)] == [ROWS] * 5


def test_a_single_object_over_many_lines_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS[0], indent=2), encoding="utf-8")
    assert values(tmp_path / "a.json") == ROWS[:1]


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines(ROWS) + "\n\n", encoding="utf-8")
    assert values(tmp_path / "a.jsonl") == ROWS


def test_a_row_knows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + lines(ROWS), encoding="utf-8")
    assert [row.place for row in read_rows(path)] == [f"{path}:2", f"{path}:3"]


def test_a_folder_is_read_recursively_in_sorted_order_without_hidden_and_binary_files(
    tmp_path: Path,
) -> None:
    for name in ("b.txt", "a/z.md", "a/b/c.py", ".git/config", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    names = [file.relative_to(tmp_path).as_posix() for file in files_of(tmp_path)]
    assert names == ["a/b/c.py", "a/z.md", "b.txt"]


def test_line_ends_are_the_same_on_every_system(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n")
    assert read_text(tmp_path / "a.txt") == "one\ntwo\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"text\0with NUL", "a.txt: a binary file, not text"),
        ("a.txt", b"caf\xe9", "a.txt: not UTF-8 text: byte 0xe9"),
        ("a.txt.gz", b"not gzip", "a.txt.gz: not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 999)[:30], "not a whole gzip file"),
        ("a.jsonl", b'{"text": 1}\n{"text": \n', "a.jsonl:2: not valid JSON: Expecting value"),
        ("a.json", b'[\n{"text": 1},\n{"text" 2}]', "a.json:3: not valid JSON: Expecting ':'"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: JSON that is nested too deep"),
        ("a.parquet", b"PAR1 not really", "a.parquet: not a valid Parquet file"),
    ],
    ids=["NUL", "latin-1", "not-gzip", "half-gzip", "line", "list", "too-deep", "not-parquet"],
)
def test_a_broken_file_is_one_clear_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    read = read_text if name.startswith("a.txt") else values
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl: no such file or folder"):
        values(tmp_path / "none.jsonl")


def test_a_folder_without_readable_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0\0")
    with pytest.raises(DataError, match="no readable file in this folder"):
        files_of(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"title": "x", "body": "y"}, r"a:3: no key 'text'; its keys: title, body\. Mend it"),
        ({}, "its keys: none"),
        ({"text": 5}, "a:3: 'text' is a int, must be text"),
        ({"text": None}, "'text' is a NoneType, must be text"),
        (["text"], "a:3: a list, must be an object with the key 'text'"),
        ({"text": "a\ud83d"}, "a:3: 'text' has half a surrogate pair at character 1"),
    ],
)
def test_a_row_without_the_text_says_what_it_has(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        string_of(Row("a:3", value), "text", "Mend it")
