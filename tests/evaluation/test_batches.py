"""Batch sizes: those that are asked for, or found by running out of memory."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from spp_cli.config import EvalConfig
from spp_cli.evaluation.batches import MOST, within_memory
from spp_cli.evaluation.harness import evaluate_task, load_tasks
from spp_cli.evaluation.perplexity import perplexity

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def too_much() -> None:
    """Run out of memory, truly: no machine has a pebibyte."""
    torch.empty(2**50, dtype=torch.uint8)


def holding(rows: int, tried: list[int]):
    """Return a measurement that ``rows`` sequences are the most for."""

    def measure(size: int) -> str:
        tried.append(size)
        if size > rows:
            too_much()
        return f"done with {size}"

    return measure


@pytest.mark.parametrize(("rows", "found"), [(100, 64), (64, 64), (40, 32), (3, 2), (1, 1)])
def test_auto_is_halved_until_memory_holds_it(rows, found):
    tried: list[int] = []
    assert within_memory(holding(rows, tried), "auto", GPU) == f"done with {found}"
    assert tried == [MOST >> step for step in range(len(tried))]


def test_on_a_cpu_auto_is_eight_and_a_limit_holds_for_every_size():
    assert within_memory(holding(100, []), "auto", CPU) == "done with 8"
    assert within_memory(holding(100, []), "auto", CPU, most=5) == "done with 5"
    assert within_memory(holding(100, []), 12, GPU, most=5) == "done with 5"


def test_a_size_that_was_asked_for_is_not_changed_and_one_sequence_is_the_least():
    tried: list[int] = []
    for size, rows in ((6, 3), ("auto", 0)):
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            within_memory(holding(rows, tried), size, CPU)
    assert tried == [6, 8, 4, 2, 1]


def test_another_error_is_not_taken_for_a_lack_of_memory():
    def measure(size: int) -> None:
        torch.empty(2, 3) @ torch.empty(2, 3)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        within_memory(measure, "auto", CPU)


@pytest.fixture
def small_memory(random_llama):
    """A model that memory holds for three sequences, and the batches it has seen."""
    seen: Counter[int] = Counter()

    def look(module, args, keywords):
        rows = len(keywords["input_ids"] if "input_ids" in keywords else args[0])
        seen[rows] += 1
        if rows > 3:
            too_much()

    model = random_llama()
    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    yield model, seen
    handle.remove()


def test_perplexity_goes_on_with_smaller_batches_to_the_same_number(
    small_memory, random_llama, recorder
):
    model, seen = small_memory
    tokens = torch.randint(4096, (7, 16), generator=torch.Generator().manual_seed(0))
    found = perplexity(model, tokens, batch_size="auto", reporter=recorder)
    assert seen == {7: 1, 4: 1, 2: 3, 1: 1}
    assert recorder.bars == [("perplexity@16", 7, 7)]
    expected = perplexity(random_llama(), tokens, batch_size=7, reporter=recorder)
    assert found.nats == pytest.approx(expected.nats, rel=1e-6)


def test_a_task_goes_on_with_smaller_batches_to_the_same_scores(
    small_memory, random_llama, tokenizer, recorder, tmp_path, monkeypatch
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"question": f"{n} + 1 =", "options": [str(n + 1), "a pie"]} for n in range(9)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/sums.jsonl}}}}\n"
        "doc_to_text: question\ndoc_to_choice: options\ndoc_to_target: 0\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    model, seen = small_memory

    def scores(model, batch_size):
        config = EvalConfig(task_folder=str(tmp_path), batch_size=batch_size)
        (task,) = load_tasks(["sums"], config).values()
        return evaluate_task(model, tokenizer, task, config, recorder)

    found = scores(model, "auto")
    assert max(seen) == 8
    assert seen[8] == seen[4] == 1
    assert recorder.bars == [("sums", 18, 18)]
    assert found == scores(random_llama(), 5)
