"""spp finetune --find-lr finds the best rate of those it tries, and trains nothing for good."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import torch
from conftest import add_tokenizer, make_model
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.config import SppConfig
from spp_cli.progress import Silent
from spp_cli.stages import prune
from spp_cli.stages.search import Trial, climb, search
from spp_cli.stages.stage import Sources

FIRST = Trial(1e-3, "linear", 16)


def valley(lowest: float):
    """Return trials whose loss is least at a rate of ``lowest``, and grows away from it."""
    return lambda trial: replace(trial, loss=abs(math.log10(trial.learning_rate / lowest)))


@given(st.floats(-4.9, -1.1))
def test_it_ends_within_half_a_step_of_the_lowest_point_of_a_valley(exponent):
    trials = climb(FIRST, valley(10**exponent))
    assert min(trial.loss for trial in trials) <= 1 / 6 + 0.02  # rates have two digits
    assert len({trial.learning_rate for trial in trials}) == len(trials) <= 8


def test_from_a_rate_that_is_nan_it_goes_down():
    def attempt(trial):
        bad = trial.learning_rate > 2e-4
        return replace(trial, loss=math.inf if bad else -math.log10(trial.learning_rate))

    assert min(climb(replace(FIRST, learning_rate=5e-4), attempt), key=lambda t: t.loss).loss < 5


def test_the_search_of_a_real_model_tells_the_best_and_leaves_a_document(tmp_path):
    dense = make_model("llama", tmp_path / "dense", vocab_size=4096)
    add_tokenizer(dense)
    (tmp_path / "prune").mkdir()
    pattern = {"prune": {"method": "magnitude", "pattern": "2:4"}}
    sources = Sources(dense, True, {"prune": tmp_path / "prune"})
    prune.run(SppConfig.model_validate(pattern), sources, tmp_path / "prune", Silent())
    run = tmp_path / "run"
    run.mkdir()
    data = {"sequence_length": 32, "samples": 24, "validation_samples": 4}
    config = SppConfig.model_validate(
        {"finetune": {"data": data, "batch_size": 2, "gradient_accumulation_steps": 1,
                      "max_steps": 4, "learning_rate": 0.05}}
    )  # fmt: skip
    document = search(config, sources, run, Silent())
    losses = [trial["loss"] for trial in document["trials"]]
    assert losses == sorted(losses)
    assert document["best"] == document["trials"][0]
    assert {trial["schedule"] for trial in document["trials"]} == {"linear", "cosine"}
    assert {trial["r"] for trial in document["trials"]} >= {16, 32, 8}
    assert json.loads((run / "find-lr.json").read_bytes()) == document
    assert {path.name for path in run.iterdir()} <= {"find-lr.json", "find-lr.png"}
    assert torch.tensor(losses).isfinite().all()
