"""What spp data check calls at hand can be read without a network; what it calls missing cannot."""

from __future__ import annotations

import json
import shutil

import datasets
import pytest
from typer.testing import CliRunner

from spp_cli.cli import app
from spp_cli.config import EvalConfig
from spp_cli.errors import DataError
from spp_cli.evaluation.at_hand import tasks_at_hand
from spp_cli.evaluation.harness import load_tasks

pytestmark = pytest.mark.slow  # the index of all tasks takes the harness some ten seconds

ROW = {
    "id": "1",
    "question_stem": "Which of these is a number",
    "choices": {"text": ["one", "apple", "pear", "plum"], "label": ["A", "B", "C", "D"]},
    "answerKey": "A",
}
README = """---
configs:
- config_name: main
  data_files: [{split: test, path: main/test.jsonl}]
---
"""


@pytest.fixture(autouse=True)
def _without_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def write_copy(folder, *splits):
    """Write a copy of the hub's allenai/openbookqa, as it lies there, below ``folder``."""
    copy = folder / "allenai" / "openbookqa" / "main"
    copy.mkdir(parents=True)
    for split in splits:
        (copy / f"{split}.jsonl").write_text(json.dumps(ROW))
    return copy.parent


def fill_the_cache(tmp_path):
    """Leave in the cache what reading allenai/openbookqa from the hub would."""
    copy = write_copy(tmp_path / "elsewhere", "test")
    (copy / "README.md").write_text(README)
    datasets.load_dataset(str(copy), "main")
    (made,) = (tmp_path / "cache" / "openbookqa").glob("main*")
    target = tmp_path / "cache" / "allenai___openbookqa" / "main"
    target.parent.mkdir()
    made.rename(target)
    (info,) = target.rglob("dataset_info.json")
    info.write_text(json.dumps({**json.loads(info.read_text()), "config_name": "main"}))
    shutil.rmtree(copy.parents[1])


@pytest.mark.parametrize(
    ("place", "splits", "shots", "state"),
    [
        ("copy", ["test"], 0, "copy"),
        ("copy", ["test"], 2, "missing"),  # the examples are
        ("copy", ["test", "train"], 1, "copy"),
        ("copy", ["train"], 0, "missing"),
        ("copy", [], 0, "missing"),
        ("cache", ["test"], 0, "cache"),
        ("cache", ["test"], 1, "missing"),
        ("nowhere", [], 0, "missing"),
    ],
)
def test_what_is_at_hand_can_be_read_and_what_is_missing_cannot(
    tmp_path, place, splits, shots, state
):
    (tmp_path / "data").mkdir()
    if place == "copy":
        write_copy(tmp_path / "data", *splits)
    if place == "cache":
        fill_the_cache(tmp_path)
    config = EvalConfig(data_folder=str(tmp_path / "data"), num_fewshot=shots)
    (found,) = tasks_at_hand(["openbookqa"], config)
    assert (found.use, found.data_set, found.subsets) == (
        "openbookqa",
        "allenai/openbookqa",
        ["main"],
    )
    assert found.state == state
    if state == "missing":
        assert found.problem
        assert found.remedy == (
            "hf download allenai/openbookqa --repo-type dataset "
            f"--local-dir {tmp_path}/data/allenai/openbookqa"
        )
        with pytest.raises(DataError):
            load_tasks(["openbookqa"], config)
    else:
        load_tasks(["openbookqa"], config)


def check(*arguments):
    return CliRunner().invoke(app, ["data", "check", *arguments])


def test_the_command_says_where_each_lies_and_ends_with_2_if_one_is_missing(tmp_path):
    copy = write_copy(tmp_path / "data", "test")
    done = check("--tasks", "openbookqa,next-line", "--from", str(tmp_path / "data"))
    assert done.exit_code == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["openbookqa", "allenai/openbookqa", "(main)", "copy", "in", str(copy)] in lines
    assert ["next-line", "the", "task's", "own", "embedded"] in lines

    (tmp_path / "mine.yaml").write_text(
        "model: some/model\nprune: {calibration: {source: c4}}\n"
        "eval: {tasks: [perplexity, openbookqa], perplexity: {source: text.txt}}\n"
    )
    (tmp_path / "text.txt").write_text("a text")
    done = check("mine.yaml", "--json")
    assert done.exit_code == 2
    document = json.loads(done.stdout)
    states = {each["use"]: each["state"] for each in document["data_sets"]}
    assert states == {
        "prune.calibration.source": "missing",
        "eval.perplexity.source": "on disk",
        "openbookqa": "missing",
    }
    assert document["missing"] == 2
    assert "2 of 3 data sets are missing" in done.stderr


def test_texts_are_found_as_copies_of_a_data_set_or_of_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: some/model\nprune: {method: magnitude}\n")
    for source, file in (
        ("wikitext2", "Salesforce/wikitext/wikitext-2-raw-v1/test-0.jsonl"),
        ("c4", "allenai/c4/en/c4-validation.00000-of-00008.json.gz"),
    ):
        asked = ("mine.yaml", "--from", "data", "--set", f"eval.perplexity.source={source}")
        (tmp_path / "data" / file).parent.mkdir(parents=True)
        missing = check(*asked)
        assert missing.exit_code == 2
        assert "hf download" in missing.stdout
        (tmp_path / "data" / file).write_text(json.dumps({"text": "a text"}))
        assert check(*asked).exit_code == 0
