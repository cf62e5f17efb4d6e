"""Files are read to text or to rows, and whatever is wrong with one is said with its place."""

from __future__ import annotations

import gzip
import json
import lzma
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.data.files import Row, read_rows, read_text, string_of
from spp_cli.data.folders import files_of, find_files
from spp_cli.data.kinds import has_rows
from spp_cli.data.tables import rows_by_number
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


@pytest.mark.parametrize(
    "content",
    [
        lines(ROWS),
        "\n" + lines([{"text": "long " * 9000}, *ROWS]),
        json.dumps(ROWS, indent=1),
        json.dumps(ROWS),
        "id\ttext\n1\tone\n2\ttwo ✓\n",
        'id;text\n1;"one; and\nmore"\n',
    ],
    ids=["lines", "long-lines", "indented", "list", "tabs", "semicolons"],
)
@pytest.mark.parametrize("name", ["a.txt", "a", "a.data.gz"])
def test_rows_are_rows_whatever_their_name(tmp_path: Path, name: str, content: str) -> None:
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert values(tmp_path / name)[-1]["text"] in ("one", "two ✓", "one; and\nmore")
    assert has_rows(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        "id,text\n",
        "prompt, and no more\nof it, or so\n",
        "one, text, and three\nno, two, three\n",
        "{not JSON}\n",
        '{"a": 1}\nand what it means\n',
        "[link](x)\n[other](y)\n",
        "",
    ],
)
def test_what_only_looks_like_rows_is_text(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    assert not has_rows(tmp_path / "a.txt")
    assert read_text(tmp_path / "a.txt") == content


def test_a_table_gives_each_value_as_text_by_its_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        '\ufeffinstruction,input,output\n"Say ""hi"",\nnow",,7\n\n' + f'"",x,{"y" * 200_000}\n'
    )
    first, second = read_rows(path)
    assert first == Row(f"{path}:2", {"instruction": 'Say "hi",\nnow', "input": "", "output": "7"})
    assert (second.place, len(second.value["output"])) == (f"{path}:5", 200_000)


def test_only_columns_of_use_are_read(tmp_path: Path) -> None:
    """Of dates, some beyond the year 9999, of bytes, and of categories that change on the way."""
    times = pyarrow.array([1_700_000_000_000_000] * 2, pyarrow.timestamp("ms"))
    turns = [[{"role": "user", "at": None}], [{"role": "assistant", "at": None}]]
    messages = pyarrow.array(turns, pyarrow.list_(pyarrow.struct(
        [("role", pyarrow.string()), ("at", pyarrow.timestamp("ms"))]
    )))  # fmt: skip
    tables = [
        pyarrow.table({
            "text": pyarrow.array(texts).dictionary_encode(),
            "label": [True, False],
            "when": times,
            "image": [b"\x89PNG", b"\x89PNG"],
            "messages": messages,
        })
        for texts in (["one", "two"], ["three", "four"])
    ]  # fmt: skip
    path = tmp_path / "a.parquet"
    with pyarrow.parquet.ParquetWriter(path, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    rows = list(read_rows(path))
    assert rows == list(rows_by_number(path))
    assert [row.value["text"] for row in rows] == ["one", "two", "three", "four"]
    assert (rows[1].value["label"], rows[0].value["messages"]) == (False, turns[0])
    with pytest.raises(DataError, match="row 1: 'when' is a date or time, must be text"):
        string_of(rows[0], "when", "Mend it")
    with pytest.raises(DataError, match="'image' is binary, must be text"):
        string_of(rows[0], "image", "Mend it")
    assert [row.value for row in read_rows(path, ["text"])][:1] == [{"text": "one"}]
    assert [*read_rows(path, ["body"])] == rows


def test_a_folder_of_rows_is_read_without_what_is_said_about_them(tmp_path: Path) -> None:
    zipped = pyarrow.compress(lines(ROWS).encode(), codec="zstd", asbytes=True)
    (tmp_path / "b.jsonl.zst").write_bytes(zipped)
    (tmp_path / "more.txt").write_text("More text.")
    for name in ("README.md", "LICENSE", "LICENSE.txt", "dataset_infos.json", "card.md", "set.py"):
        (tmp_path / name).write_text("About.")
    (tmp_path / "a.zip").write_bytes(b"PK\3\4")
    found = find_files(tmp_path)
    assert [file.name for file in found.files] == ["b.jsonl.zst", "more.txt"]
    assert values(found.files[0]) == ROWS
    assert str(found) == (
        "LICENSE (about the data), LICENSE.txt (about the data), README.md (about the data), "
        "a.zip (no text) and 3 more"
    )


@pytest.mark.parametrize("is_split", [False, True])
def test_a_data_set_that_datasets_has_saved_is_read_by_its_own_list(
    tmp_path: Path, is_split: bool
) -> None:
    test = datasets.Dataset.from_list(ROWS[:1])
    whole: Any = datasets.Dataset.from_list(ROWS, split=None if is_split else "train")
    if is_split:
        whole = datasets.DatasetDict({"train": whole, "test": test})
    whole.save_to_disk(str(tmp_path))
    (tmp_path / "cache-0123.arrow").write_bytes(b"left by a map")
    (file,) = files_of(tmp_path)
    assert values(file) == ROWS
    if is_split:
        assert values(*files_of(tmp_path, usual="test")) == ROWS[:1]
        assert values(*files_of(tmp_path, "test")) == ROWS[:1]
    with pytest.raises(DataError, match=r"a saved data set (that has no|of) split"):
        files_of(tmp_path, "validation")


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_text_is_the_same_on_every_system(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("one\r\ntwo ✓\n".encode(encoding))
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress("one\ntwo ✓\n".encode(encoding)))
    assert [read_text(file) for file in files_of(tmp_path)] == ["one\ntwo ✓\n"] * 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"text\0with NUL", "a.txt: a binary file, not text"),
        ("a.txt", b"caf\xe9", "a.txt: not UTF-8 text: byte 0xe9"),
        ("a.txt", b"\xff\xfex\0\0\xd8\0", "a.txt: not UTF-16"),
        ("a.txt", b"PK\3\4", "a.txt: a zip archive. Unpack it first"),
        ("a.txt", b"%PDF-1.7 text", "a.txt: a PDF. Save its text as a .txt file"),
        ("a.txt.gz", b"not gzip", "a.txt.gz: not a whole gzip file"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\0not it", "a.jsonl.zst: not a whole zstd file"),
        ("a.jsonl.xz", lzma.compress(b"x" * 99)[:-9], "a.jsonl.xz: not a whole xz file"),
        ("a.csv", b"a,b\n1,2\n3\n", "a.csv:3: 1 values, and the first line names 2 columns"),
        ("a.csv", b'a,b\n1,"2\n', "a.csv:2: not a valid table: unexpected end of data"),
        ("a.csv", b"a,a\n", "a.csv:1: two columns are named 'a'"),
        ("a.arrow", b"ARROW1 not really", "a.arrow: not a valid Parquet or Arrow file"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x"}\n' * 999, mtime=0)[:30],
            "not a whole gzip file",
        ),
        ("a.jsonl", b'{"text": 1}\n{"text": \n', "a.jsonl:2: not valid JSON: Expecting value"),
        ("a.json", b'[\n{"text": 1},\n{"text" 2}]', "a.json:3: not valid JSON: Expecting ':'"),
        pytest.param(
            "a.jsonl", b"[" * 100_000, "a.jsonl:1: not valid JSON: nested too deep", id="deep"
        ),
        ("a.parquet", b"PAR1 not really", "a.parquet: not a valid Parquet or Arrow file"),
    ],
    ids=str,
)
def test_a_broken_file_is_one_clear_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    read = read_text if name.startswith("a.txt") else values
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl: .*a pipe") as caught:
        values(tmp_path / "a.jsonl")
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
        ({"text": 5}, "a:3: 'text' is a number, must be text"),
        ({"text": None}, "'text' is null, must be text"),
        (["text"], "a:3: a list, must be an object with the key 'text'"),
        ({"text": "a\ud83d"}, "a:3: 'text' has half a surrogate pair at character 1"),
    ],
)
def test_a_row_without_the_text_says_what_it_has(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        string_of(Row("a:3", value), "text", "Mend it")
