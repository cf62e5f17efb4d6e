"""MMLU as it is published: five examples before each question, by subject and in all."""

from __future__ import annotations

import pytest
from pyarrow import Table
from pyarrow.parquet import write_table

from spp_cli.config import EvalConfig
from spp_cli.evaluation.at_hand import tasks_at_hand
from spp_cli.evaluation.harness import evaluate_task, load_tasks
from spp_cli.evaluation.tasks import find_tasks
from spp_cli.progress import Silent

pytestmark = pytest.mark.slow
FILE = "{}-00000-of-00001.parquet"


def question(number: int, answer: int) -> dict[str, object]:
    return {
        "question": f"Which number is {number}?",
        "subject": "counting",
        "choices": [str(number + step) for step in range(4)],
        "answer": answer % 4,
    }


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A copy of cais/mmlu, as its README.md tells: per subject two or three questions."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    index = find_tasks(["mmlu"], None)
    subjects = [
        name.removeprefix("mmlu_") for name in index.all_subtasks if is_subject(name, index)
    ]
    card = ["---", "configs:"]
    for place, subject in enumerate(subjects):
        card += [f"- config_name: {subject}", "  data_files:"]
        folder = tmp_path / "data" / "cais" / "mmlu" / subject
        folder.mkdir(parents=True)
        for split, count in (("dev", 5), ("test", 2 + place % 2)):
            card += [f"  - split: {split}", f"    path: {subject}/{split}-*"]
            rows = [question(number, number + place) for number in range(count)]
            write_table(Table.from_pylist(rows), folder / FILE.format(split))
    (tmp_path / "data" / "cais" / "mmlu" / "README.md").write_text("\n".join([*card, "---", ""]))
    return tmp_path / "data", subjects


def is_subject(name, index):
    return "/mmlu/default/" in str(index.task_index[name].yaml_path)


def test_mmlu_is_asked_with_five_examples_and_has_a_mean_over_its_57_subjects(
    data, random_llama, tokenizer
):
    folder, subjects = data
    assert len(subjects) == 57
    config = EvalConfig(data_folder=str(folder))
    (place,) = tasks_at_hand(["mmlu"], config)
    assert place.problem == ""
    assert (place.data_set, place.state, len(place.subsets)) == ("cais/mmlu", "copy", 57)

    (task,) = load_tasks(["mmlu"], config).values()
    found = evaluate_task(random_llama(context=2048), tokenizer, task, config, Silent())
    prompt = task.tasks["mmlu_anatomy"].instances[0].args[0]
    assert prompt.count("Answer:") == 6
    assert prompt.startswith("The following are multiple choice questions (with answers) about")

    of_subjects = [found[f"mmlu_{subject}"] for subject in subjects]
    assert {result.num_fewshot for result in found.values()} == {5}
    right = sum(result.metrics["acc"] * result.samples for result in of_subjects)
    assert found["mmlu"].samples == sum(result.samples for result in of_subjects) == 142
    assert found["mmlu"].metrics["acc"] == pytest.approx(right / 142)
    assert found["mmlu"].metrics["acc_stderr"] > 0
    assert found["mmlu"].group is None
    assert found["mmlu_stem"].group == "mmlu"
    assert found["mmlu_anatomy"].group == "mmlu_stem"

    (folder / "cais" / "mmlu" / "anatomy" / FILE.format("dev")).unlink()
    (place,) = tasks_at_hand(["mmlu"], config)
    assert place.problem == "1 of 57 subsets, anatomy first: no split 'dev', only test"
    assert place.remedy.endswith(f"--local-dir {folder}/cais/mmlu")
