"""One configuration names text anywhere; documents come in a fixed order and none is blank."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, get_args

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.config import TextConfig
from spp_cli.data import stdlib
from spp_cli.data.text import Texts, Use, load_texts
from spp_cli.errors import DataError


def load(source: str | Path, use: Use = "calibration", **settings: Any) -> Texts:
    folder = settings.pop("data_folder", None)
    demo = settings.pop("demo", False)
    config = TextConfig.model_validate({"source": str(source), **settings})
    return load_texts(config, use, demo=demo, data_folder=folder and str(folder))


def test_auto_means_the_standard_library_for_the_embedded_model() -> None:
    for use, part in (("calibration", "train"), ("validation", "validation"), ("test", "test")):
        texts = load("auto", use, demo=True)  # type: ignore[arg-type]
        assert texts.name == "demo"
        expected = [text for _, text in stdlib.read_texts(part) if text.strip()]  # type: ignore[arg-type]
        assert list(texts.documents) == expected


def test_auto_means_c4_or_wikitext_for_any_other_model(tmp_path: Path) -> None:
    write_wikitext(tmp_path, "test", ["one"])
    assert load("auto", "test", data_folder=tmp_path).name == "wikitext2"
    (tmp_path / "allenai/c4").mkdir(parents=True)  # a copy that lacks what is asked for
    for use, shard in (("calibration", "c4-train.00000-of-01024"), ("train", "c4-train.00000")):
        with pytest.raises(DataError, match=rf"data set allenai/c4 \(en/{shard}"):
            load("auto", use, data_folder=tmp_path)  # type: ignore[arg-type]


def test_wikitext_is_its_rows_joined_by_blank_lines_as_published(tmp_path: Path) -> None:
    rows = ["", " = Title = \n", "", " A paragraph . \n"]
    write_wikitext(tmp_path, "test", rows)
    assert load("wikitext2", "test", data_folder=tmp_path).documents == ("\n\n".join(rows),)


def write_wikitext(data_folder: Path, split: str, rows: list[str]) -> None:
    path = data_folder / f"Salesforce/wikitext/wikitext-2-raw-v1/{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path)


def test_c4_is_one_shard_of_training_or_validation(tmp_path: Path) -> None:
    folder = tmp_path / "allenai/c4/en"
    folder.mkdir(parents=True)
    row = json.dumps({"text": "held out", "url": "x"})
    (folder / "c4-validation.00000-of-00008.json.gz").write_bytes(gzip.compress(row.encode()))
    assert load("c4", "test", data_folder=tmp_path).documents == ("held out",)


def test_a_text_file_is_one_document_and_a_json_line_is_one_each(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\nstill one", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"body": "two"}\n{"body": "three"}\n', encoding="utf-8")
    assert load(tmp_path, field="body").documents == ("one\n\nstill one", "two", "three")
    assert load(tmp_path / "a.txt").documents == ("one\n\nstill one",)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv.zst"])
@pytest.mark.parametrize("use", get_args(Use))
def test_a_folder_gives_its_rows_alone_and_says_what_it_passed_over(
    use: Use, kind: str, tmp_path: Path, told: Any
) -> None:
    texts, nothing = ["one", None, "two", None], "" if "csv" in kind else "null"
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "id": [1, 2, 3, 4]}), file)
    elif kind == "jsonl":  # as json writes what pandas has for null
        values = ["NaN" if text is None else f'"{text}"' for text in texts]
        file.write_text("".join(f'{{"text": {value}}}\n' for value in values))
    else:
        table = "id,text\n" + "".join(f"1,{text or ''}\n" for text in texts)
        file.write_bytes(pyarrow.compress(table.encode(), codec="zstd", asbytes=True))
    (tmp_path / "README.md").write_text("How this data set was made.")
    config = TextConfig(source=str(tmp_path))
    assert load_texts(config, use, demo=False, reporter=told).documents == ("one", "two")
    lines = [f"{tmp_path}: passed over README.md (about the data)"]
    if nothing:
        place = f"{file}:2" if kind == "jsonl" else f"{file} row 2"
        lines.append(f"{place}: 'text' is null, and in 1 more row; passed over")
    assert told.lines == lines


def test_texts_that_are_all_null_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n')
    with pytest.raises(DataError, match="holds no text"):
        load(tmp_path / "a.jsonl")


def test_a_saved_data_set_is_read_by_its_splits(tmp_path: Path) -> None:
    parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path))
    assert load(tmp_path).documents == ("train",)
    assert load(tmp_path, "test").documents == ("test",)
    assert load(tmp_path, split="test").documents == ("test",)
    with pytest.raises(DataError, match=r"no split validation, only train, test\. Set split to"):
        load(tmp_path, "validation")
    with pytest.raises(DataError, match="subset and split belong to a hub data set"):
        load(tmp_path, subset="en")


def test_blank_documents_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": " \\n"}\n{"text": "x"}\n')
    assert load(tmp_path / "a.jsonl").documents == ("x",)


@given(documents=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4))
def test_the_digest_changes_with_any_text_and_any_boundary(
    documents: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("texts") / "a.jsonl"

    def digest(texts: list[str]) -> str:
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return load(file).digest

    first = digest(documents)
    assert digest(documents) == first
    assert digest([*documents[:-1], documents[-1] + "!"]) != first
    assert digest([*documents, "!"]) != first
    if len(documents) > 1:
        assert digest([documents[0] + documents[1], *documents[2:]]) != first


@pytest.mark.parametrize("use", get_args(Use))
def test_a_source_that_is_nowhere_names_its_setting(use: Use) -> None:
    with pytest.raises(DataError, match=r"\.source: no/such/file: no such file or folder") as error:
        load("no/such/file", use)
    assert "a hub data set" in str(error.value)


@pytest.mark.parametrize(
    ("source", "hint"),
    [("wikitext", "Did you mean 'wikitext2'"), ("data/train.jsonl", "no such file"), ("./x", "x")],
)
def test_a_missing_file_is_not_taken_for_a_hub_data_set(source: str, hint: str) -> None:
    with pytest.raises(DataError, match=hint):
        load(source)


def test_a_file_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"prune\.calibration\.source: .*a\.txt holds no text"):
        load(tmp_path / "a.txt")


def test_a_missing_field_names_the_setting_that_mends_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*keys: body\. Set eval\.perplexity\.field"):
        load(tmp_path / "a.jsonl", "test")


def test_a_split_of_a_local_file_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for source in (str(tmp_path / "a.txt"), "demo"):
        with pytest.raises(DataError, match="subset and split belong to a hub data set"):
            load(source, split="test")


def test_an_unreachable_data_set_says_how_to_supply_it(tmp_path: Path) -> None:
    (tmp_path / "owner/name").mkdir(parents=True)
    with pytest.raises(DataError, match="Put a copy at DATA_FOLDER/owner/name and set eval"):
        load("owner/name", "test", data_folder=tmp_path)
    with pytest.raises(
        DataError, match=r"Set prune\.calibration\.source to a file of text or rows"
    ):
        load("owner/name", data_folder=tmp_path)
