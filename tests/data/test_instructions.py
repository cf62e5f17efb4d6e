"""Rows to train on and to validate on: complete, apart, the same for a seed, mistakes located."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.config import TrainingDataConfig
from spp_cli.data.instructions import Rows, pack, training_rows
from spp_cli.errors import DataError

ROWS = [{"instruction": f"Say {n}", "input": "", "output": f"It is {n}."} for n in range(40)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(
    tokenizer: Any, source: str | Path, length: int = 256, seed: int = 0, **settings: Any
) -> tuple[Rows, Rows]:
    config = TrainingDataConfig.model_validate({"source": str(source), **settings})
    return training_rows(config, tokenizer, length, demo=False, seed=seed)


def texts(tokenizer: Any, rows: Rows) -> list[str]:
    return tokenizer.batch_decode(rows.input_ids, skip_special_tokens=True)


@given(
    documents=st.lists(st.lists(st.integers(0, 99), min_size=1), max_size=8),
    length=st.integers(2, 20),
)
def test_packing_keeps_every_token_once_and_in_order(
    documents: list[list[int]], length: int
) -> None:
    stream = [token for document in documents for token in document]
    blocks = pack(documents, length)
    packed = [token for block in blocks for token in block]
    assert packed == stream[: len(packed)]
    assert len(stream) - len(packed) == (1 if len(stream) % length == 1 else 0)
    assert all(len(block) == length for block in blocks[:-1])
    assert all(2 <= len(block) <= length for block in blocks[-1:])
    assert pack(documents, length, 2) == blocks[:2]


def test_the_embedded_model_validates_on_modules_it_never_saw(tokenizer: Any) -> None:
    config = TrainingDataConfig(samples=3, validation_samples=2)
    train, validation = training_rows(config, tokenizer, 64, demo=True, seed=0)
    assert (len(train.input_ids), len(validation.input_ids)) == (3, 2)
    assert train.source == validation.source == "demo"
    assert train.labels == train.input_ids
    assert {len(block) for block in train.input_ids + validation.input_ids} == {64}


def test_every_row_is_either_trained_on_or_validated_on(tokenizer: Any, tmp_path: Path) -> None:
    train, validation = load(tokenizer, write(tmp_path / "a.jsonl", ROWS))
    assert (len(train.input_ids), len(validation.input_ids)) == (36, 4)
    found = texts(tokenizer, train) + texts(tokenizer, validation)
    assert sorted(text.rsplit("\n", 1)[-1] for text in found) == sorted(
        row["output"] for row in ROWS
    )


@given(count=st.integers(2, 60), validation_samples=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_validation_takes_at_most_every_tenth_row_and_none_of_the_trained_ones(
    tokenizer: Any,
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    validation_samples: int,
    seed: int,
) -> None:
    rows = [{"instruction": "Say", "output": str(n)} for n in range(count)]
    path = write(tmp_path_factory.mktemp("rows") / "a.jsonl", rows)
    train, validation = load(tokenizer, path, seed=seed, validation_samples=validation_samples)
    assert len(validation.input_ids) == max(1, min(validation_samples, count // 10))
    assert len(train.input_ids) == count - len(validation.input_ids)
    assert not {*map(tuple, train.input_ids)} & {*map(tuple, validation.input_ids)}


def test_a_copy_of_a_validation_row_is_not_trained_on(tokenizer: Any, tmp_path: Path) -> None:
    rows = [*ROWS, *ROWS]
    train, validation = load(tokenizer, write(tmp_path / "a.jsonl", rows))
    assert not {*map(tuple, train.input_ids)} & {*map(tuple, validation.input_ids)}
    assert train.skipped == len({*map(tuple, validation.input_ids)}) * 2 - len(validation.input_ids)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(
    tokenizer: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    first, again, other = (load(tokenizer, path, seed=seed, samples=9) for seed in (0, 0, 1))
    assert first == again
    assert [rows.digest for rows in first] != [rows.digest for rows in other]
    assert len(first[0].input_ids) == 9


def test_the_digest_covers_the_labels(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    whole, answers = (load(tokenizer, path, train_on_prompt=on)[0] for on in (True, False))
    assert whole.input_ids == answers.input_ids
    assert whole.digest != answers.digest


def test_long_rows_are_cut_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"instruction": "Go on", "output": "on " * 200}, *ROWS[:9]])
    held_out = write(tmp_path / "b.jsonl", ROWS[9:])
    train, validation = load(tokenizer, path, 128, validation_source=str(held_out))
    assert [len(ids) == 128 for ids in train.input_ids] == [True] + [False] * 9
    assert (train.truncated, validation.truncated, train.skipped) == (1, 0, 0)


def test_a_row_that_has_nothing_left_to_learn_is_skipped_and_counted(
    tokenizer: Any, tmp_path: Path
) -> None:
    wordy = {"instruction": "Think. " * 200, "output": "Yes"}  # the answer lies beyond the cut
    path = write(tmp_path / "a.jsonl", [*ROWS[:20], {"instruction": "Add", "output": ""}, wordy])
    held_out = write(tmp_path / "b.jsonl", ROWS[20:])
    train, _ = load(tokenizer, path, 128, validation_source=str(held_out), train_on_prompt=False)
    assert (len(train.input_ids), train.skipped, train.truncated) == (20, 2, 0)


def test_a_validation_source_is_used_whole_up_to_its_samples(
    tokenizer: Any, tmp_path: Path
) -> None:
    path, held_out = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", ROWS[:20])
    train, validation = load(
        tokenizer, path, validation_source=str(held_out), validation_samples=20
    )
    assert (len(validation.input_ids), validation.source) == (20, str(held_out))
    assert (len(train.input_ids), train.skipped) == (20, 20)


@pytest.mark.parametrize(
    ("row", "last_line"),
    [
        ({"instruction": "Say", "output": "Yes", "text": "no"}, "Yes"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]},
         "Yes\n"),
        ({"text": "Yes"}, "Yes"),
    ],
    ids=["alpaca", "chat", "text"],
)  # fmt: skip
def test_the_format_follows_from_the_keys(
    chat_tokenizer: Any, tmp_path: Path, row: Any, last_line: str
) -> None:
    other = json.loads(json.dumps(row).replace("Yes", "No"))
    path = write(tmp_path / "a.jsonl", [other])
    train, _ = load(chat_tokenizer, write(tmp_path / "b.jsonl", [row]), validation_source=str(path))
    assert texts(chat_tokenizer, train)[0].endswith(last_line)


def test_plain_text_is_packed_with_beginning_and_end_of_each_file(
    tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("one two three " * 20)
    (tmp_path / "b.md").write_text("four five six " * 20)
    train, validation = load(tokenizer, tmp_path, 16)
    ids = [token for block in train.input_ids + validation.input_ids for token in block]
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 2


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"prompt": "x"}], {}, r"a\.jsonl:1: keys prompt tell no format\. Allowed: instruction"),
        (["x"], {}, r"a\.jsonl:1: keys none tell no format"),
        ([], {}, r"a\.jsonl holds no row"),
        (ROWS[:1], {}, r"leaves no row to train on: it has 1"),
        ([{"instruction": "x", "output": ""}] * 9, {}, r"leaves no row to validate on: it has 9"),
        ([*ROWS, {"output": 1}], {"format": "alpaca"}, r"a\.jsonl:41: no key 'instruction'"),
        ([{"text": "x"}, {"body": "x"}], {}, r"jsonl:2: no key 'text'; .* finetune\.data\.field"),
        (ROWS, {"format": "chat"}, r"this model's tokenizer has none"),
        (ROWS, {"validation_source": "none.json"}, r"validation_source: none\.json: no such file"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_rows_is_one_clear_line(
    tokenizer: Any, tmp_path: Path, rows: list[Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(tokenizer, write(tmp_path / "a.jsonl", rows), **settings)
    assert "\n" not in str(caught.value)


def test_plain_text_is_not_read_as_instructions(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for source in ("demo", tmp_path / "a.txt"):
        with pytest.raises(DataError, match="is plain text, and format is alpaca"):
            load(tokenizer, source, format="alpaca")
