"""A source has another digest if other rows or texts are read of it, and else the one it had."""

from __future__ import annotations

from pathlib import Path

import pytest

from spp_cli.data.sources import source_digest
from spp_cli.fingerprint import canonical_json, file_digest, sha256


def digest(path: Path) -> str | None:
    return source_digest(str(path), "train", demo=False)


def first_version(*files: Path) -> str:
    """The digest that spp has had since its first version."""
    return sha256(canonical_json([file_digest(file) for file in files]))


def test_what_is_read_as_it_always_was_keeps_its_digest(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    files = [tmp_path / name for name in (".hidden", "a.jsonl", "b/a.png", "b/c.json", "d.txt")]
    for file, content in zip(files, ("x", '{"text": "x"}', "\0", "[]", "x"), strict=True):
        file.write_text(content)
    assert digest(tmp_path) == first_version(*files)
    for file in (files[1], files[4]):
        assert digest(file) == first_version(file)


def test_what_is_said_about_data_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    before = digest(tmp_path)
    for name in ("README.md", "LICENSE", "notes.md"):
        (tmp_path / name).write_text("x")
        assert digest(tmp_path) == before == first_version(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "text,id\nx,1\n"), ("a.txt", '{"text": "x"}\n')]
)
def test_what_was_read_as_one_text_and_is_rows_now_has_another(
    tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    assert digest(tmp_path / name) != first_version(tmp_path / name)
    before = digest(tmp_path / name)
    (tmp_path / name).write_text(content.replace("x", "y"))
    assert digest(tmp_path / name) != before
