"""What a task draws is what the harness's own command draws, whatever was drawn before."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from spp_cli.config import EvalConfig
from spp_cli.evaluation import seeds, tasks
from spp_cli.evaluation.harness import evaluate_task, load_tasks
from spp_cli.progress import Silent

TASK = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/NAME.jsonl, train: FOLDER/NAME.jsonl}}
test_split: test
training_split: train
process_docs: !function shuffling.process
output_type: multiple_choice
doc_to_text: !function shuffling.ask
doc_to_choice: options
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 1}
"""
CODE = """
import random
import numpy as np

def process(data):
    def one(row):
        options = [str(row["sum"] + n) for n in range(4)]
        random.shuffle(options)
        return {**row, "options": options, "answer": options.index(str(row["sum"]))}
    return data.map(one)

def ask(row):
    return f"{random.random():.2f} {np.random.rand():.2f}\\n{row['question']}"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two tasks that shuffle their options as they are made, and draw as they ask."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tasks._index.cache_clear()
    (tmp_path / "shuffling.py").write_text(CODE)
    rows = [{"question": f"{n} + {n} =", "sum": 2 * n} for n in range(24)]
    for name in ("first", "second"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        text = TASK.replace("NAME", name).replace("FOLDER", str(tmp_path))
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def ours(folder, model, tokenizer, *names):
    config = EvalConfig(task_folder=str(folder), num_fewshot=1, limit=20)
    loaded = load_tasks(names, config)
    found = {
        name: evaluate_task(model, tokenizer, task, config, Silent())[name].metrics
        for name, task in loaded.items()
    }
    return found, {name: task.data_digest(name) for name, task in loaded.items()}


def test_a_task_that_shuffles_is_that_of_the_harness_wherever_it_stands(
    folder, embedded_model, tokenizer
):
    random.seed(7)
    found, digests = ours(folder, embedded_model, tokenizer, "first", "second")
    random.seed(8)
    again, alone = ours(folder, embedded_model, tokenizer, "second")
    assert again["second"] == found["second"]
    assert alone["second"] == digests["second"]
    theirs = simple_evaluate(
        HFLM(pretrained=embedded_model, tokenizer=tokenizer, softmax_dtype="float32"),
        tasks=["second"],
        num_fewshot=1,
        limit=20,
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        bootstrap_iters=0,
    )["results"]["second"]
    for metric in ("acc", "acc_norm"):
        assert found["second"][metric] == theirs[f"{metric},none"]


def test_whoever_draws_besides_goes_on_where_he_was():
    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()

    with seeds.drawing():
        first, middle, second = drawn(), seeds.state(), drawn()
    before = seeds.state()
    with seeds.drawing(middle):
        assert drawn() == second
    with seeds.drawing(before):
        expected = drawn()
    assert drawn() == expected
    with seeds.drawing():
        assert drawn() == first
