"""What is kept comes back as it was, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from spp_cli.records import read_record, write_record

VALUE = {"nats": numpy.float32(0.5), "worst": float("inf"), "none": float("nan"), "names": ["é"]}


def test_a_record_comes_back_as_it_was_whatever_numbers_it_has(tmp_path: Path) -> None:
    path, warnings = tmp_path / "below" / "a.json", []
    assert read_record(path, warnings.append) is None
    write_record(path, VALUE)
    found = read_record(path, warnings.append)
    assert (found["nats"], found["worst"], found["names"]) == (0.5, float("inf"), ["é"])
    assert found["none"] != found["none"]
    assert warnings == []


@pytest.mark.parametrize("place", range(0, 150, 7))
def test_no_damaged_record_is_read(tmp_path: Path, place: int) -> None:
    path, warnings = tmp_path / "a.json", []
    write_record(path, VALUE)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)
    assert read_record(path, warnings.append) is None
    assert warnings == [f"{path} is damaged, and measured again"]
