"""MMLU as it is published: five examples before each question, by subject and in all."""

from __future__ import annotations

import pytest
from datasets import Dataset

from spp_cli.config import EvalConfig
from spp_cli.evaluation.at_hand import tasks_at_hand
from spp_cli.evaluation.harness import evaluate_task, load_tasks
from spp_cli.evaluation.tasks import find_tasks
from spp_cli.progress import Silent

pytestmark = pytest.mark.slow
FILE = "{}-00000-of-00001.parquet"


def question(number: int) -> dict[str, object]:
    return {
        "question": f"Which number is {number}?",
        "subject": "counting",
        "choices": [str(number + step) for step in range(4)],
        "answer": 0,
    }


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A copy of cais/mmlu, with one or two questions and five examples in each subject."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    index = find_tasks(["mmlu"], None)
    subjects = [
        name.removeprefix("mmlu_") for name in index.all_subtasks if is_subject(name, index)
    ]
    for place, subject in enumerate(subjects):
        folder = tmp_path / "data" / "cais" / "mmlu" / subject
        folder.mkdir(parents=True)
        for split, count in (("dev", 5), ("test", 1 + place % 2)):
            rows = [question(number) for number in range(count)]
            Dataset.from_list(rows).to_parquet(folder / FILE.format(split))
    return tmp_path / "data", subjects


def is_subject(name, index):
    return "/mmlu/default/" in str(index.task_index[name].yaml_path)


def test_mmlu_is_asked_with_five_examples_and_has_a_mean_over_its_57_subjects(
    data, random_llama, tokenizer
):
    folder, subjects = data
    assert len(subjects) == 57
    config = EvalConfig(data_folder=str(folder))
    (place,) = tasks_at_hand(["mmlu"], config, Silent())
    assert (place.data_set, place.state, len(place.subsets)) == ("cais/mmlu", "copy", 57)

    (task,) = load_tasks(["mmlu"], config).values()
    found = evaluate_task(random_llama(context=2048), tokenizer, task, config, Silent())
    prompt = task.tasks["mmlu_anatomy"].instances[0].args[0]
    assert prompt.count("Answer:") == 6
    assert prompt.startswith("The following are multiple choice questions (with answers) about")

    of_subjects = [found[f"mmlu_{subject}"] for subject in subjects]
    assert {result.num_fewshot for result in found.values()} == {5}
    right = sum(result.metrics["acc"] * result.samples for result in of_subjects)
    assert found["mmlu"].samples == sum(result.samples for result in of_subjects) == 85
    assert found["mmlu"].metrics["acc"] == pytest.approx(right / 85)
    assert found["mmlu"].metrics["acc_stderr"] > 0
    assert found["mmlu"].group is None
    assert found["mmlu_stem"].group == "mmlu"
    assert found["mmlu_anatomy"].group == "mmlu_stem"

    (folder / "cais" / "mmlu" / "anatomy" / FILE.format("dev")).unlink()
    (place,) = tasks_at_hand(["mmlu"], config, Silent())
    assert place.problem == "1 of 57 subsets, anatomy first: no split 'dev', only test"
    assert place.remedy.endswith(f"--local-dir {folder}/cais/mmlu")
    (place,) = tasks_at_hand(["mmlu"], config.model_copy(update={"num_fewshot": 0}), Silent())
    assert place.state == "copy"  # without examples nobody reads them
