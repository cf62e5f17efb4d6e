"""Two processes under accelerate launch do together what one does, and fail as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import add_tokenizer, make_model
from safetensors.torch import load_file
from typer.testing import CliRunner

from spp_cli.cli import app
from spp_cli.locking import lock_holder

pytestmark = pytest.mark.slow

SMALL = ("--samples", "6", "--sequence-length", "64", "--set", "prune.calibration.batch_size=2")
LAUNCH = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def together(
    *arguments: str, program: tuple[str, ...] = ("-m", "spp_cli")
) -> subprocess.CompletedProcess:
    """Run a command in two processes."""
    command = [sys.executable, *LAUNCH, *program, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def prune_both_ways(*how: str) -> list[dict[str, Any]]:
    """Prune as run ``two`` in two processes, and as run ``one`` in this; return their metrics."""
    two = together("prune", *SMALL, *how, "--run", "two", "--json")
    assert two.returncode == 0, two.stderr
    # --force: else it would be linked from the other run, which is the same.
    one = CliRunner().invoke(app, ["prune", *SMALL, *how, "--run", "one", "--force", "--json"])
    assert one.exit_code == 0, one.stderr
    return [json.loads(answer)["metrics"] for answer in (two.stdout, one.stdout)]


@pytest.mark.parametrize(
    "how",
    [
        ("--method", "wanda", "--sparsity", "0.75"),
        ("--method", "wanda", "--sparsity", "0.5", "--set", "prune.order=one-pass"),
        ("--method", "wanda", "--pattern", "2:4", "--set", "prune.refine=dsnot"),
        ("--method", "wanda", "--order", "dense", "--allocation", "owl"),
        ("--sparsity", "0.5", "--set", "prune.method={name: wanda++, iterations: 0}"),
    ],
    ids=["two-pass", "one-pass", "dsnot", "dense", "gradients"],
)
def test_two_processes_prune_as_one_does(how):
    two, one = prune_both_ways(*how)
    assert two["sparsity"] == one["sparsity"]
    weights = [load_file(f"workspace/{run}/prune/model.safetensors") for run in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    differing = sum(int((weights[0][name] != weights[1][name]).sum()) for name in weights[0])
    # Sums in another order may turn a near tie: at most one weight in a thousand.
    assert differing <= sum(tensor.numel() for tensor in weights[0].values()) // 1000


@pytest.mark.parametrize(
    ("how", "key", "within"),
    [
        (("--method", "sparsegpt", "--order", "two-pass"), "loss", 0.01),
        (("--method", "fista", "--order", "one-pass"), "output_error", 0.05),
        # each process draws from sequences of its own what a block learns from
        (("--method", "wanda++"), "output_error", 0.05),
    ],
    ids=["sparsegpt", "fista", "wanda++"],
)
def test_two_processes_make_a_model_as_good_as_one_does(how, key, within):
    # Not compared weight by weight: one near tie that turns changes the weights of all columns
    # behind it, or the penalty that FISTAPruner settles on.
    two, one = (
        sum(layer[key] for layer in metrics["layers"].values())
        for metrics in prune_both_ways(*how, "--pattern", "2:4")
    )
    assert two == pytest.approx(one, rel=within)


def test_a_pruning_by_two_processes_that_was_killed_goes_on():
    how = (*SMALL, "--sparsity", "0.75", "--run", "cut")
    slow = [sys.executable, *LAUNCH, "-m", "spp_cli", "prune", *how]
    process = subprocess.Popen(
        slow,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    record = Path("workspace/cut/prune.partial/.resume/blocks/block-00001.safetensors")
    while not record.exists():
        assert process.poll() is None
    os.kill(lock_holder(Path("workspace/cut/.lock"))["pid"], signal.SIGKILL)
    assert process.wait() != 0  # the launcher ends the other process
    again = together("prune", *how)
    assert again.returncode == 0, again.stderr
    assert "going on after block" in again.stderr
    whole = together("prune", *how[:-1], "whole", "--force")
    assert whole.returncode == 0, whole.stderr
    contents = [
        Path(f"workspace/{run}/prune/model.safetensors").read_bytes() for run in ("cut", "whole")
    ]
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "--pattern", "3:5"), "error: prune.pattern is '3:5'; model.layers.0."),
        (
            ("prune", "--samples", "1"),
            "error: prune.calibration.samples is 1, and there are 2 processes. "
            "Set at least 2, or start fewer",
        ),
        (("eval", "--stage", "dense"), "error: eval runs in one process, and there are 2"),
    ],
)
def test_a_mistake_is_told_once(arguments, message):
    done = together(*arguments)
    assert done.returncode != 0
    assert done.stderr.count(message) == 1, done.stderr


# As if the second process were on a machine with other files.
ELSEWHERE = """
import os
from spp_cli.__main__ import main

if os.environ["RANK"] == "1":
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
main()
"""


def test_a_mistake_that_one_process_alone_finds_is_told_by_it():
    add_tokenizer(make_model("llama", Path("base"), vocab_size=4096))
    Path("elsewhere.py").write_text(ELSEWHERE)
    done = together("prune", "--model", "base", *SMALL, program=("elsewhere.py",))
    assert done.returncode != 0
    assert done.stderr.count("error: process 2 of 2: model base: no such folder") == 1, done.stderr
    # The launcher may end the main process before it has noticed.
    assert done.stderr.count("error: ") <= 2, done.stderr
