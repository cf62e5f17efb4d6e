"""Training rows are tokenized once: what is read is what would be made, or it is made anew."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.config import TrainingDataConfig
from spp_cli.data import row_store
from spp_cli.data.pools import Wanted
from spp_cli.data.row_store import AskedRows, KeptRows, RowStore
from spp_cli.data.token_rows import Account, RowWriter
from spp_cli.errors import DataError
from spp_cli.progress import Silent

ROWS = [{"instruction": f"Say {n}", "output": f"It is {n}."} for n in range(40)]
OTHERS = [{"instruction": f"Add {n}", "output": f"{n} + 1"} for n in range(40)]
rows_of_ids = st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9), min_size=1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with rows."""
    for name, rows in (("rows.jsonl", ROWS), ("others.jsonl", OTHERS)):
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def nothing_like(tokenizer: Any) -> Any:
    """Return what bears a tokenizer's name, and fails at whatever is asked of it."""
    return type(type(tokenizer).__name__, (), {})()


def asked(tokenizer: Any, digest: str = "t", **changes: Any) -> AskedRows:
    counts = {"length": 64, "seed": 0, "demo": False, "most": None}
    given = {name: changes.pop(name, value) for name, value in counts.items()}
    config = TrainingDataConfig.model_validate({"source": "rows.jsonl", **changes})
    return AskedRows(Wanted(config, tokenizer, **given), digest)


def as_lists(kept: KeptRows) -> list[Any]:
    return [list(map(rows.__getitem__, range(len(rows)))) for rows in (kept.train, kept.validation)]


@given(rows=rows_of_ids, data=st.data())
def test_rows_come_back_as_they_were_written(rows: list[list[int]], data: st.DataObject) -> None:
    writer = RowWriter()
    expected = []
    for ids in rows:
        labels = [data.draw(st.sampled_from([token, -100])) for token in ids]
        writer.add(ids, labels)
        expected.append({"input_ids": ids, "labels": labels})
    found = writer.rows(Account("here", "alpaca", len(rows)))
    assert list(map(found.__getitem__, range(len(found)))) == expected
    assert found.lengths.tolist() == list(map(len, rows))


def test_the_second_time_no_tokenizer_is_needed(here: Path, tokenizer: Any) -> None:
    store = RowStore(here / "store", here / "digests.json")
    first = store.rows(asked(tokenizer, train_on_prompt=False), Silent())
    second = store.rows(asked(nothing_like(tokenizer), train_on_prompt=False), Silent())
    assert (first.is_new, second.is_new) == (True, False)
    assert first.path == second.path
    assert as_lists(first) == as_lists(second)
    assert first.train.described() == second.train.described()
    assert isinstance(second.train.tokens, np.memmap)


@pytest.mark.parametrize(
    "change",
    [
        {"source": "others.jsonl"},
        {"validation_source": "others.jsonl"},
        {"samples": 5},
        {"most": 5},
        {"seed": 1},
        {"length": 48},
        {"format": "alpaca"},
        {"train_on_prompt": False},
        {"validation_samples": 2},
        {"digest": "another tokenizer"},
    ],
    ids=str,
)
def test_whatever_decides_the_rows_is_in_the_name(
    change: dict[str, Any], here: Path, tokenizer: Any
) -> None:
    assert asked(tokenizer, **change).key(None) != asked(tokenizer).key(None)


def test_whatever_does_not_is_not(here: Path, tokenizer: Any) -> None:
    assert asked(tokenizer, packing=True).key(None) == asked(tokenizer).key(None)
    assert asked(tokenizer, samples=5, most=9).key(None) == asked(tokenizer, samples=5).key(None)


def test_changed_rows_are_tokenized_anew(here: Path, tokenizer: Any) -> None:
    store = RowStore(here / "store", here / "digests.json")
    before = store.rows(asked(tokenizer), Silent())
    (here / "rows.jsonl").write_text((here / "others.jsonl").read_text())
    after = store.rows(asked(tokenizer), Silent())
    assert after.is_new
    assert after.train.digest != before.train.digest
    (here / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"rows\.jsonl: no such file or folder"):
        store.rows(asked(tokenizer), Silent())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other(path: Path) -> None:
    """Put a whole safetensors file of something else there."""
    row_store.write_tensors(path, {}, lambda _: None, {"train": "{}"})  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("damage", [flip, cut, empty, other])
def test_a_damaged_file_is_made_anew_with_a_word(damage: Any, here: Path, tokenizer: Any) -> None:
    store, talk = RowStore(here / "store"), Silent()
    kept = store.rows(asked(tokenizer), talk)
    assert kept.path is not None
    whole, lists = kept.path.read_bytes(), as_lists(kept)
    damage(kept.path)
    again = store.rows(asked(tokenizer), talk)
    assert again.is_new
    assert as_lists(again) == lists
    assert kept.path.read_bytes() == whole
    (warning,) = talk.warnings
    assert warning.startswith(f"{kept.path} is damaged, and made anew: ")
    assert not store.rows(asked(tokenizer), talk).is_new


def test_a_kill_at_any_moment_leaves_whole_files_or_none(
    here: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # its threads do not outlive a fork
    (here / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS * 20))
    begun = time.perf_counter()
    expected = RowStore().rows(asked(tokenizer), Silent())
    took = time.perf_counter() - begun
    store, moments = RowStore(here / "store"), random.Random(0)
    killed = 0
    for _ in range(20):
        child = os.fork()
        if child == 0:
            store.rows(asked(tokenizer), Silent())
            os._exit(0)
        time.sleep(moments.uniform(0, took))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        talk = Silent()
        left = [path.name for path in (here / "store").glob("*")]
        assert all(re.fullmatch(r"\w+\.safetensors|\..+\.writing", name) for name in left)
        found = list((here / "store").glob("[!.]*"))
        if found:
            assert as_lists(store.rows(asked(nothing_like(tokenizer)), talk)) == as_lists(expected)
            found[0].unlink()
        assert talk.warnings == []
    assert killed


def test_without_a_folder_rows_are_made_and_kept_nowhere(here: Path, tokenizer: Any) -> None:
    kept = RowStore().rows(asked(tokenizer), Silent())
    assert (kept.path, kept.is_new) == (None, True)
    assert sorted(path.name for path in here.iterdir()) == ["others.jsonl", "rows.jsonl"]
