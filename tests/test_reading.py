"""What others wrote, and is damaged or made to do harm: a short ValueError, at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from spp_cli import yaml12
from spp_cli.reading import parse_json, read_bytes, read_json


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000 + "]" * 200_000, "nested too deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deep"),
        ("[" * 150 + "]" * 150, "nested too deep"),  # Python would read it, and not write it
        ("9" * 5000, "a number of too many digits"),
        ('{"a":', "Expecting value"),
        (b'"\xff"', "not UTF-8"),
    ],
)
def test_json_that_cannot_be_read_is_a_value_error_of_a_few_words(
    text: str | bytes, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        parse_json(text)
    assert len(str(error.value)) < 100


def test_json_with_many_lists_is_not_deep() -> None:
    assert parse_json("[" + "[1]," * 500 + "[2]]")[-1] == [2]


def test_a_pipe_is_not_waited_for_and_a_large_file_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(OSError, match="a pipe"):
        read_json(tmp_path / "pipe.json")
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(ValueError, match="larger than 4 bytes"):
        read_bytes(tmp_path / "large", 4)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than 200,000 values"),
        ("a: 1\n" * 1_000_000, "longer than 4,000,000"),
        ("seed: " + "9" * 5000, r"9\.\.\.' cannot be read as int"),
        ("seed: !!int x", "'x' cannot be read as int"),
        ("seed: !!float x", "'x' cannot be read as float"),
        ("seed: !!timestamp x", "'x' cannot be read as timestamp"),
        ("seed: !!bool x", "'x' cannot be read as bool"),
        ('model: "a\\0b"', "a NUL"),
        ('model: "\\ud800"', "half a surrogate pair"),
    ],
)
def test_yaml_that_cannot_be_read_is_a_yaml_error(text: str, words: str) -> None:
    with pytest.raises(yaml.YAMLError, match=words):
        yaml12.parse(text)


def test_aliases_and_merges_of_ordinary_size_are_read() -> None:
    text = "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]"
    assert yaml12.parse(text) == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}] * 2}
