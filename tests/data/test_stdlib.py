"""The embedded model's texts come from the running Python, split as in its training."""

from __future__ import annotations

from pathlib import Path

import pytest

from spp_cli.data.stdlib import TEST_MODULES, missing_modules, module_names, read_texts
from spp_cli.errors import DataError


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"name = {name!r}\n", encoding="utf-8")
    return root


def test_this_python_has_source_code_for_every_part() -> None:
    for part in ("train", "validation", "test"):
        texts = read_texts(part)
        assert texts
        assert all(isinstance(text, str) and name.endswith(".py") for name, text in texts)


def test_no_module_is_in_two_parts() -> None:
    parts = [{name for name, _ in read_texts(part)} for part in ("train", "validation", "test")]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_training_leaves_out_tests_packages_and_files_of_one_build(tmp_path: Path) -> None:
    seen = ("abc.py", "xml/dom/minidom.py", "unittest/mock.py")
    unseen = (
        "argparse.py",
        "json/tool.py",
        "json/__main__.py",
        "test/test_abc.py",
        "unittest/test/x.py",
        "lib2to3/tests/data/y.py",
        "site-packages/numpy/core.py",
        "dist-packages/apt.py",
        "encodings/ascii.py",
        "_sysconfigdata__linux_.py",
        "config-3.11-x86_64-linux-gnu/python-config.py",
    )
    write(tmp_path, *seen, *unseen, "pydoc.txt")
    assert [name for name, _ in read_texts("train", tmp_path)] == sorted(seen)


def test_modules_come_in_sorted_order_and_files_before_packages(tmp_path: Path) -> None:
    for part in ("validation", "test"):
        names = module_names(part, tmp_path)
        assert list(names) == sorted(names, key=lambda name: (name.count("/"), name))


def test_a_module_that_python_lacks_is_skipped_and_told(tmp_path: Path) -> None:
    write(tmp_path, *TEST_MODULES[1:])
    assert [name for name, _ in read_texts("test", tmp_path)] == list(TEST_MODULES[1:])
    assert missing_modules("test", tmp_path) == TEST_MODULES[:1]
    assert missing_modules("train", tmp_path) == ()


def test_a_python_without_source_code_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no source code of its standard library in"):
        read_texts("test", tmp_path)


def test_a_coding_line_is_honoured(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes("# coding: latin-1\ncafé = 1\n".encode("latin-1"))
    assert read_texts("train", tmp_path) == [("latin.py", "# coding: latin-1\ncafé = 1\n")]
