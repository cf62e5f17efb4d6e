"""Data sets of the harness's tasks, from copies on disk in the hub's layout; no network."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

from spp_cli.config import EvalConfig
from spp_cli.errors import ConfigError, DataError
from spp_cli.evaluation.harness import evaluate_task, load_tasks
from spp_cli.progress import Silent

pytestmark = pytest.mark.slow  # the index of all tasks takes the harness some ten seconds

ROWS = [
    {
        "id": str(number),
        "question_stem": f"Which of these is number {number}",
        "choices": {"text": ["zero", "one", "two", "three"], "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[number],
    }
    for number in range(4)
]
README = """---
configs:
- config_name: main
  data_files: [{split: test, path: questions/test-*.parquet}]
---
"""


@pytest.fixture(autouse=True)
def _without_hub(tmp_path, monkeypatch):
    """Neither network nor what this machine may have read from the hub before."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "data" / "allenai" / "openbookqa"
    folder.mkdir(parents=True)
    return folder


def evaluate(random_llama, tokenizer, tmp_path, **settings):
    config = EvalConfig(data_folder=str(tmp_path / "data"), **settings)
    (task,) = load_tasks(["openbookqa"], config).values()
    return evaluate_task(random_llama(), tokenizer, task, config, Silent())["openbookqa"]


def test_a_copy_in_the_hubs_layout_is_read_instead_of_the_hub(
    copy, tmp_path, random_llama, tokenizer
):
    (copy / "README.md").write_text(README)
    (copy / "questions").mkdir()
    Dataset.from_list(ROWS).to_parquet(copy / "questions" / "test-00000-of-00001.parquet")
    found = evaluate(random_llama, tokenizer, tmp_path)
    assert found.samples == 4
    assert {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"} == set(found.metrics)


def test_a_copy_without_readme_has_its_subsets_in_folders(copy, tmp_path, random_llama, tokenizer):
    (copy / "main").mkdir()
    (copy / "main" / "test.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (copy / "additional").mkdir()
    (copy / "additional" / "test.jsonl").write_text(json.dumps(ROWS[0]))
    assert evaluate(random_llama, tokenizer, tmp_path).samples == 4


def test_examples_need_the_split_that_they_come_from(copy, tmp_path, random_llama, tokenizer):
    (copy / "main").mkdir()
    (copy / "main" / "test.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    with pytest.raises(DataError, match=r"openbookqa \(main\) has no split 'train', only test"):
        evaluate(random_llama, tokenizer, tmp_path, num_fewshot=1)


def test_a_copy_that_cannot_be_read_is_named(copy, tmp_path, random_llama, tokenizer):
    (copy / "main").mkdir()
    (copy / "main" / "test.parquet").write_bytes(b"not Parquet")
    with pytest.raises(DataError, match=r"in .*/data/allenai/openbookqa cannot be read: "):
        evaluate(random_llama, tokenizer, tmp_path)


@pytest.mark.parametrize("with_folder", [True, False])
def test_data_that_cannot_be_reached_says_which_and_where_to_put_a_copy(tmp_path, with_folder):
    (tmp_path / "data").mkdir()
    folder = str(tmp_path / "data") if with_folder else None
    with pytest.raises(DataError) as error:
        load_tasks(["openbookqa"], EvalConfig(data_folder=folder))
    place = folder or "FOLDER"
    assert str(error.value) == (
        "task openbookqa: data set allenai/openbookqa (main) cannot be read: the hub cannot be "
        f"reached, and no copy is in its cache. Put a copy of it in {place}/allenai/openbookqa "
        f"and set eval.data_folder: {place}"
    )


def test_a_data_folder_that_is_none_is_an_error(tmp_path, random_llama, tokenizer):
    with pytest.raises(ConfigError, match=r"eval.data_folder is '.*data', which is not a folder"):
        evaluate(random_llama, tokenizer, tmp_path)
