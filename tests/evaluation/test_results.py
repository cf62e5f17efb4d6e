"""A number is measured once, and anew as soon as anything that decides it is another."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import add_tokenizer, make_model

from spp_cli.config import SppConfig
from spp_cli.errors import ConfigError
from spp_cli.evaluation import results
from spp_cli.evaluation.results import Measure, Subject

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/sums.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_choice: options
doc_to_target: 0
metric_list: [{metric: acc}]
metadata: {version: 1}
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with one task."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "sums.yaml").write_text(TASK.replace("FOLDER", str(folder)))
    write_rows(folder, 5)
    return folder


def write_rows(folder, count):
    rows = [{"question": f"{n} + 1 =", "options": [str(n + 1), "a pie"]} for n in range(count)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def measured(tmp_path, tasks, recorder):
    """Return what measures under changed settings, and says which bars that took."""
    folder = add_tokenizer(make_model("llama", tmp_path / "model", vocab_size=4096))

    def measure(digest="m", **settings):
        asked = {"tasks": ["sums"], "task_folder": str(tasks), **settings}
        config = SppConfig.model_validate({"eval": asked, "model": {"device": "cpu"}})
        recorder.bars.clear()

        def load():
            from transformers import AutoModelForCausalLM

            return AutoModelForCausalLM.from_pretrained(folder)

        subject = Subject("model", digest, folder, load)
        results, _ = Measure(config, tmp_path / "cache", recorder)(subject)
        return results["sums"], [name for name, _, _ in recorder.bars]

    return measure


def test_the_same_is_never_measured_again_wherever_its_files_lie(tasks, measured, tmp_path):
    first, bars = measured()
    assert bars == ["sums"]
    moved = tmp_path / "moved"
    shutil.copytree(tasks, moved)
    (moved / "sums.yaml").write_text(TASK.replace("FOLDER", str(moved)))
    for same in ({}, {"task_folder": str(moved)}, {"num_fewshot": 0}, {"batch_size": 2}):
        assert measured(**same) == (first, [])


def test_whatever_decides_a_score_makes_it_be_measured_anew(tasks, measured):
    _, bars = measured()
    assert bars == ["sums"]
    for other in ({"limit": 3}, {"num_fewshot": 1}, {"limit": 4, "num_fewshot": 1}):
        found, bars = measured(**other)
        assert bars == ["sums"]
        assert found["num_fewshot"] == other.get("num_fewshot", 0)
    assert measured(digest="another")[1] == ["sums"]

    write_rows(tasks, 4)
    found, bars = measured()
    assert bars == ["sums"]
    assert found["samples"] == 4
    write_rows(tasks, 5)
    assert measured()[1] == []


@pytest.mark.parametrize(
    "change",
    [("version: 1", "version: 2"), ("doc_to_text: question", "doc_to_text: 'Q: {{question}}'")],
)
def test_another_version_or_prompt_of_a_task_is_another_task(tasks, measured, change, monkeypatch):
    from spp_cli.evaluation import tasks as module

    assert measured()[1] == ["sums"]
    file = tasks / "sums.yaml"
    file.write_text(file.read_text().replace(*change))
    module._index.cache_clear()  # as in another process
    assert measured()[1] == ["sums"]


def test_a_function_of_a_task_counts_with_all_of_its_file(tasks, measured):
    code = "SIGN = '{}'\n\n\ndef ask(row):\n    return row['question'] + SIGN\n"
    (tasks / "questions.py").write_text(code.format("?"))
    file = tasks / "sums.yaml"
    file.write_text(
        file.read_text().replace("doc_to_text: question", "doc_to_text: !function questions.ask")
    )
    assert measured()[1] == ["sums"]
    assert measured()[1] == []
    (tasks / "questions.py").write_text(code.format("!"))
    assert measured()[1] == ["sums"]


def test_a_missing_chat_template_is_told_before_a_model_is_loaded(measured, recorder):
    with pytest.raises(ConfigError, match="has no chat template"):
        measured(chat_template=True)
    assert recorder.bars == []


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"value": {}, "sha256": 1}', "[" * 10**5])
def test_a_damaged_result_is_measured_again_with_a_word(measured, recorder, tmp_path, content):
    first, _ = measured()
    for file in (tmp_path / "cache").iterdir():
        file.write_text(content)
    assert measured() == (first, ["sums"])
    assert recorder.warnings
    assert all("is damaged, and measured again" in warning for warning in recorder.warnings)
    assert measured() == (first, [])


def test_what_other_versions_have_computed_is_measured_again(measured, monkeypatch):
    assert measured()[1] == ["sums"]
    now = results.arithmetic()
    assert set(now) == {"torch", "transformers"}
    for package in now:
        with monkeypatch.context() as patch:
            patch.setattr(results, "arithmetic", lambda package=package: {**now, package: "0"})
            assert measured()[1] == ["sums"]
    assert measured()[1] == []
