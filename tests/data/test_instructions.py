"""Rows to train on and to validate on: complete, apart, the same for a seed, mistakes located."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.config import TrainingDataConfig
from spp_cli.data.instructions import enough, training_rows
from spp_cli.data.pools import Wanted, draws, pack
from spp_cli.data.token_rows import Rows
from spp_cli.errors import DataError
from spp_cli.progress import Silent

COPY = "copies of validation rows"
ROWS = [{"instruction": f"Say {n}", "input": "", "output": f"It is {n}."} for n in range(40)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(
    tokenizer: Any, source: str | Path, length: int = 256, seed: int = 0, **settings: Any
) -> tuple[Rows, Rows]:
    config = TrainingDataConfig.model_validate({"source": str(source), **settings})
    return training_rows(Wanted(config, tokenizer, length, seed, demo=False), Silent())


def ids_of(rows: Rows) -> list[list[int]]:
    return [rows[index]["input_ids"] for index in range(len(rows))]


def labels_of(rows: Rows) -> list[list[int]]:
    return [rows[index]["labels"] for index in range(len(rows))]


def texts(tokenizer: Any, rows: Rows) -> list[str]:
    return tokenizer.batch_decode(ids_of(rows), skip_special_tokens=True)


@given(
    documents=st.lists(st.lists(st.integers(0, 99), min_size=1), max_size=8),
    length=st.integers(2, 20),
)
def test_packing_keeps_every_token_once_and_in_order(
    documents: list[list[int]], length: int
) -> None:
    stream = [token for document in documents for token in document]
    blocks = list(pack(documents, length))
    packed = [token for block in blocks for token in block]
    assert packed == stream[: len(packed)]
    assert len(stream) - len(packed) == (1 if len(stream) % length == 1 else 0)
    assert all(len(block) == length for block in blocks[:-1])
    assert all(2 <= len(block) <= length for block in blocks[-1:])
    assert list(pack(documents, length, 2)) == blocks[:2]


def test_the_embedded_model_validates_on_modules_it_never_saw(tokenizer: Any) -> None:
    config = TrainingDataConfig(samples=3, validation_samples=2)
    train, validation = training_rows(Wanted(config, tokenizer, 64, 0, demo=True), Silent())
    assert (len(train), len(validation)) == (3, 2)
    assert train.account.source == validation.account.source == "demo"
    assert labels_of(train) == ids_of(train)
    assert {*train.lengths, *validation.lengths} == {64}


def test_every_row_is_either_trained_on_or_validated_on(tokenizer: Any, tmp_path: Path) -> None:
    train, validation = load(tokenizer, write(tmp_path / "a.jsonl", ROWS))
    assert (len(train), len(validation)) == (36, 4)
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
    assert len(validation) == max(1, min(validation_samples, count // 10))
    assert len(train) == count - len(validation)
    assert not {*map(tuple, ids_of(train))} & {*map(tuple, ids_of(validation))}


def test_a_copy_of_a_validation_row_is_not_trained_on(tokenizer: Any, tmp_path: Path) -> None:
    rows = [*ROWS, *ROWS]
    train, validation = load(tokenizer, write(tmp_path / "a.jsonl", rows))
    assert not {*map(tuple, ids_of(train))} & {*map(tuple, ids_of(validation))}
    assert train.account.skipped[COPY] == len({*map(tuple, ids_of(validation))}) * 2 - len(
        validation
    )


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(
    tokenizer: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    first, again, other = (load(tokenizer, path, seed=seed, samples=9) for seed in (0, 0, 1))
    digests = [[rows.digest for rows in each] for each in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]
    assert ids_of(first[0]) == ids_of(again[0])
    assert len(first[0]) == 9


def test_the_digest_covers_the_labels(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    whole, answers = (load(tokenizer, path, train_on_prompt=on)[0] for on in (True, False))
    assert ids_of(whole) == ids_of(answers)
    assert whole.digest != answers.digest


def test_long_rows_are_cut_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"instruction": "Go on", "output": "on " * 200}, *ROWS[:9]])
    held_out = write(tmp_path / "b.jsonl", ROWS[9:])
    train, validation = load(tokenizer, path, 128, validation_source=str(held_out))
    assert [len(ids) == 128 for ids in ids_of(train)] == [True] + [False] * 9
    assert (train.account.truncated, validation.account.truncated) == (1, 0)
    assert train.account.skipped == {}


def test_what_is_left_out_is_counted_by_its_reason(tokenizer: Any, tmp_path: Path) -> None:
    wordy = {"instruction": "Think. " * 200, "output": "Yes"}  # the answer lies beyond the cut
    rows = [*ROWS[:21], {"instruction": "Add", "output": ""}, wordy, wordy]
    path = write(tmp_path / "a.jsonl", rows)
    held_out = write(tmp_path / "b.jsonl", ROWS[20:])
    train, _ = load(tokenizer, path, 128, validation_source=str(held_out), train_on_prompt=False)
    assert (len(train), train.account.truncated, train.account.read) == (20, 0, 24)
    assert train.account.skipped == {"empty": 1, "too long to reach an answer": 2, COPY: 1}
    assert str(train.account) == (f" (left out: 1 {COPY}, 1 empty, 2 too long to reach an answer)")


@given(count=st.integers(0, 300), seed=st.integers(0, 2**32), most=st.integers(1, 300))
def test_rows_are_drawn_in_the_order_of_a_shuffle_that_is_never_held(
    count: int, seed: int, most: int
) -> None:
    shuffled = random.Random(seed).sample(range(count), count)
    assert list(draws(count, seed)) == shuffled
    assert list(draws(count, seed, most)) == shuffled[:most]


@given(rows=st.integers(1, 10**7))
def test_enough_rows_are_no_fewer_than_asked_and_not_many_more(rows: int) -> None:
    assert rows <= enough(rows) < max(2 * rows, 20_000)


def test_rows_beyond_what_training_can_use_are_not_looked_at(
    tokenizer: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [*ROWS, *[{"no": "row"}] * 4000])
    held_out = write(tmp_path / "b.jsonl", ROWS[20:])
    config = TrainingDataConfig(source=str(path), validation_source=str(held_out))
    with pytest.raises(DataError, match="no key 'instruction'"):
        training_rows(Wanted(config, tokenizer, 128, 0, demo=False, most=400), Silent())
    first = next(draws(4040, 139))
    assert first < 40  # of this seed the first row is a good one
    train, _ = training_rows(Wanted(config, tokenizer, 128, 139, demo=False, most=1), Silent())
    assert train.account.read == 1


def test_a_validation_source_is_used_whole_up_to_its_samples(
    tokenizer: Any, tmp_path: Path
) -> None:
    path, held_out = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", ROWS[:20])
    train, validation = load(
        tokenizer, path, validation_source=str(held_out), validation_samples=20
    )
    assert (len(validation), validation.account.source) == (20, str(held_out))
    assert (len(train), train.account.skipped) == (20, {COPY: 20})


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
    ids = [token for block in ids_of(train) + ids_of(validation) for token in block]
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


def hub_layout(folder: Path, count: int) -> Path:
    """Lay out a data set as the hub has it, with a split that is not to be read."""
    (folder / "data").mkdir(parents=True)
    write(folder / "data/train-00000-of-00001.jsonl", (ROWS * count)[:count])
    write(folder / "data/validation-00000-of-00001.jsonl", ROWS[:1])
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_in_the_hubs_layout_is_read_split_by_split(
    streaming: bool, tokenizer: Any, tmp_path: Path
) -> None:
    folder = hub_layout(tmp_path / "set", 40)
    settings = {"split": "train", "streaming": streaming, "samples": 36}
    train, validation = load(tokenizer, folder, **settings)
    assert (len(train), len(validation)) == (36, 4)
    found = texts(tokenizer, train) + texts(tokenizer, validation)
    assert sorted(text.rsplit("\n", 1)[-1] for text in found) == sorted(
        row["output"] for row in ROWS
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_is_read_no_further_than_needed(tokenizer: Any, tmp_path: Path) -> None:
    folder = hub_layout(tmp_path / "set", 1)
    for number in range(40):
        write(folder / f"data/train-{number:05d}-of-00040.jsonl", ROWS * 25)
    (folder / "data/train-00007-of-00040.jsonl").write_text("no JSON\n")
    settings = {"split": "train", "streaming": True, "samples": 50, "validation_samples": 10}
    found = []
    for seed in range(4):  # which decides which of the files come first
        try:
            found.append([len(rows) for rows in load(tokenizer, folder, seed=seed, **settings)])
        except DataError:
            continue
    assert 0 < len(found) < 4
    assert all(sum(lengths) <= 60 for lengths in found)


def test_a_stream_without_an_end_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    folder = hub_layout(tmp_path / "set", 3)
    with pytest.raises(DataError, match=r"Set finetune\.data\.samples or finetune\.max_steps"):
        load(tokenizer, folder, split="train", streaming=True)


def test_a_text_that_is_null_is_passed_over_and_counted(
    tokenizer: Any, tmp_path: Path, told: Any
) -> None:
    rows = [{"text": f"{number} " * 40 if number % 7 else None} for number in range(40)]
    config = TrainingDataConfig(source=str(write(tmp_path / "a.jsonl", rows)))
    train, _ = training_rows(Wanted(config, tokenizer, 16, 0, demo=False), told)
    assert len(train) > 100
    (line,) = told.lines
    assert "'text' is null, and in 5 more rows; passed over" in line


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl.gz", "a.parquet", "a.csv", "a.txt", "saved", "folder"]
)
def test_whatever_holds_the_rows_they_are_the_same(
    name: str, tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        write(path / "1.jsonl", ROWS[:13])
        write(path / "2.jsonl", ROWS[13:])
        (path / "README.md").write_text("About this data.")
    elif name == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    elif name == "a.csv":
        datasets.Dataset.from_list(ROWS).to_csv(path)
    elif name == "a.txt":
        write(path, ROWS)
    elif name == "a.json":
        path.write_text(json.dumps(ROWS))
    elif name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        path.write_bytes(gzip.compress(write(tmp_path / "a.jsonl", ROWS).read_bytes()))
    plain = load(tokenizer, write(tmp_path / "b.jsonl", ROWS))
    assert [rows.digest for rows in load(tokenizer, path)] == [rows.digest for rows in plain]
