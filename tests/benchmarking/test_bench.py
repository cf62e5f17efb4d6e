"""spp bench: every way at every batch size, and ratios that follow from the times."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from spp_cli.benchmarking.bench import bench, speed
from spp_cli.benchmarking.worker import Subject
from spp_cli.cli import app
from spp_cli.errors import ModelError, SppError
from spp_cli.progress import Silent
from spp_cli.reporting.bench_table import bench_table
from spp_cli.workspace import Workspace

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=7)
SMALL = ["--batch-sizes", "2,1", "--prompt-length", "8", "--new-tokens", "4", "--repeats", "2"]


def spp(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--json"])
    assert done.exit_code == code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture(autouse=True)
def workspace(side_by_side: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("SPP_WORKSPACE", str(side_by_side.root))
    return side_by_side


@pytest.fixture(scope="module")
def document(side_by_side: Workspace) -> dict[str, Any]:
    """What bench says of a merged model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPP_WORKSPACE", str(side_by_side.root))
        return spp("bench", "wanda", *SMALL)


def test_every_way_is_measured_at_every_batch_size(document, workspace):
    assert document["model"] == "wanda/merge"
    assert document["folder"] == str(workspace.root / "wanda/merge")
    assert [way["way"] for way in document["ways"]] == ["dense", "packed"]
    for way in document["ways"]:
        assert [result["batch_size"] for result in way["results"]] == [1, 2]
    assert [way["way"] for way in document["skipped"]] == ["2:4"]
    assert document["pruned_linears"] == 14


def test_the_numbers_follow_from_the_times(document):
    dense = document["ways"][0]
    tokens = {"prefill": 8, "decode": 4}
    for way in document["ways"]:
        for result, base in zip(way["results"], dense["results"], strict=True):
            for phase, length in tokens.items():
                seconds = result[phase]["seconds"]
                low, high = result[phase]["range"]
                assert 0 < low <= seconds <= high
                speed = result["batch_size"] * length / seconds
                assert result[phase]["tokens_per_second"] == pytest.approx(speed)
                ratio = base[phase]["seconds"] / seconds
                assert result[phase]["against_dense"] == pytest.approx(ratio)
            assert result["peak_bytes"] is None or result["peak_bytes"] > 10**7


def test_packed_holds_fewer_bytes_and_computes_the_same(document):
    dense, packed = document["ways"]
    # bfloat16 on disk, float32 on a CPU: half the values of 4 bytes, and a bit a weight
    assert dense["against_dense"] == 1
    assert packed["against_dense"] == pytest.approx(0.5 + 1 / 32, abs=0.01)
    assert packed["largest_difference"] == 0
    assert packed["linears"] == document["pruned_linears"]


def test_the_table_says_in_words_what_is_slower_and_what_is_left_out(document):
    text = bench_table(document)
    assert text.count("dense") >= 2
    assert "logits are equal to the bit" in text
    assert "2:4 is left out: torch computes it on GPUs of NVIDIA only" in text
    for result in document["ways"][1]["results"]:
        for phase in ("prefill", "decode"):
            found = result[phase]
            assert f"{found['against_dense']:.2f}×, {found['verdict']}" in text


def test_a_batch_that_failed_has_its_reason_in_the_table(document):
    failed = {"batch_size": 2, "failed": "out of memory"}
    dense, packed = document["ways"]
    ways = [dense, {**packed, "results": [packed["results"][0], failed]}]
    lines = bench_table({**document, "ways": ways}).splitlines()
    assert any(line.split() == ["2", "packed", "out", "of", "memory"] for line in lines)


@given(TIMES, TIMES)
def test_slower_is_called_slower_and_only_what_is_apart_is_called_different(seconds, dense):
    found = speed(10, seconds, dense)
    assert found["against_dense"] == statistics.median(dense) / statistics.median(seconds)
    expected = "unclear"
    if min(seconds) > max(dense):
        expected = "slower"
    if max(seconds) < min(dense):
        expected = "faster"
    assert found["verdict"] == expected
    assert speed(10, seconds, [])["against_dense"] is None


def subject(folder: Path) -> Subject:
    return Subject(folder, torch.device("cpu"), False, prompt_length=4, new_tokens=2)


def test_a_dense_model_is_refused_in_the_words_of_the_process_that_found_it(workspace):
    with pytest.raises(ModelError, match="has no pruned linear, so there is nothing to gain"):
        bench(subject(workspace.root.parent / "base"), [1], 1, Silent())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wanda", "--batch-sizes", "1,x"], "--batch-sizes is '1,x'; must be whole numbers"),
        (["wanda", "--batch-sizes", "0"], "--batch-sizes is '0'; must be whole numbers from 1"),
        (["wanda", "--prompt-length", "60"], "--prompt-length is 60 and --new-tokens 16; "),
        (["wanda/finetune"], "wanda/finetune is an adapter, which a merge takes away"),
        (["wanda/eval"], "wanda/eval names no model of a run"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(arguments, says):
    assert spp("bench", *arguments, code=2)["error"].startswith(says)


def test_a_process_that_is_killed_is_an_error_of_one_line(workspace, monkeypatch):
    from spp_cli.benchmarking import bench as module

    receive = module._Worker.receive

    def killed(worker: Any) -> Any:
        worker._process.kill()
        return receive(worker)

    monkeypatch.setattr(module._Worker, "receive", killed)
    with pytest.raises(SppError, match=r"was ended from outside \(code -9\)") as told:
        bench(subject(workspace.root / "wanda/prune"), [1], 1, Silent())
    assert "\n" not in str(told.value)
