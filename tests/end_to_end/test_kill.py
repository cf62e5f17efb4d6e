"""Real processes, killed at any moment: the old result or a partial one, then the same again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import add_tokenizer, make_model

from spp_cli.workspace import Workspace

SETTINGS = [
    *("--set", "prune.calibration.samples=24", "--set", "prune.calibration.sequence_length=64"),
    *("--set", "finetune.data.samples=24", "--set", "finetune.data.sequence_length=64"),
    *("--set", "finetune.data.validation_samples=4", "--set", "finetune.batch_size=4"),
    *("--set", "finetune.evaluate_every=3", "--set", "finetune.checkpoint_every=1"),
    *("--set", "eval.tasks=[perplexity]", "--set", "eval.perplexity.max_chunks=8"),
]
COMMANDS = ("prune", "finetune", "merge", "eval")
SPP = [sys.executable, "-m", "spp_cli"]


def start(command: str, workspace: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SPP, command, "--workspace", str(workspace), "--run", "r", *SETTINGS, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Where the tests run in the background, SIGINT would be ignored from the start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(command: str, workspace: Path, *more: str) -> None:
    """Run a command to its end."""
    process = start(command, workspace, *more)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def outputs(workspace: Path) -> dict[str, str]:
    """Return the digest of what each finished stage left; an error if one is damaged."""
    run = Workspace(workspace).run("r")
    manifests = {stage: run.manifest(stage) for stage in COMMANDS}
    return {stage: found.output_digest for stage, found in manifests.items() if found}


def marks(pattern: str, folder: Path) -> set[tuple[str, int]]:
    """Return the files of this pattern, each with its time of change."""
    found = set()
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):  # replaced or removed at this moment
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[str]) -> None:
    """Return when the process has written a file of this pattern, or has ended.

    Files that an earlier kill left behind do not count.
    """
    before = marks(pattern, folder)
    while process.poll() is None and marks(pattern, folder) <= before:
        time.sleep(0.005)


# What has to be there before the kill: the stage has begun, or has a part of its work on disk.
BEGUN = "r/{command}.partial/fingerprint.json"
WORKED = {
    "prune": "r/prune.partial/.resume/blocks/block-*",
    "finetune": "r/finetune.partial/.resume/checkpoint-*/complete.json",
    "merge": "r/merge.partial/*.safetensors",
    "eval": ".cache/evaluations/*.json",
}


@pytest.mark.slow
def test_any_stage_killed_at_any_moment_ends_in_the_result_of_an_undisturbed_run(tmp_path):
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"
    for command in COMMANDS:
        finish(command, calm)
    expected = outputs(calm)
    moments = random.Random(0)
    kills = 0
    for command in COMMANDS:
        for pattern in (BEGUN.format(command=command), WORKED[command], WORKED[command]):
            before = outputs(shaken)
            process = start(command, shaken)
            wait_for(pattern, shaken, process)
            time.sleep(moments.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
            after = outputs(shaken)
            assert before.items() <= after.items(), f"{command} after {pattern}"
            assert after.items() <= expected.items(), f"{command} after {pattern}"
            status = subprocess.run(
                [*SPP, "status", "--workspace", str(shaken), "--json"],
                capture_output=True,
                check=False,
            )
            assert status.returncode == 0
        finish(command, shaken)
    assert kills >= len(COMMANDS)  # the work of some is so quick that a kill can come too late
    assert outputs(shaken) == expected


@pytest.mark.slow
def test_an_interrupted_command_says_how_to_go_on_and_ends_in_130(tmp_path):
    process = start("prune", tmp_path, "--set", "prune.calibration.samples=512")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("calibration"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()[-1]) > 20
    assert not (tmp_path / "r" / "prune").exists()


@pytest.mark.slow
def test_the_old_result_survives_a_killed_replacement(tmp_path):
    finish("prune", tmp_path)
    before = outputs(tmp_path)
    process = start("prune", tmp_path, "--set", "prune.sparsity=0.6", "--force")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("calibration"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert outputs(tmp_path) == before


# Forks before it computes anything, so that each of the many starts costs no imports.
KILLED_OFTEN = """
import os, random, signal, sys, time
import torch
from spp_cli.cli import app
from spp_cli.stages import prune

torch.set_num_threads(1)
folder, *command = sys.argv[1:]
moments, kills = random.Random(int(command.pop())), 0
while True:
    child = os.fork()
    if not child:
        app(command)
        os._exit(9)  # never reached
    # The first kills come early; when 20 have struck, the last child is left alone.
    time.sleep(moments.uniform(0, 1.2)) if kills < 20 else None
    if kills < 20:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
    kills += 1
print(kills, os.WEXITSTATUS(status))
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["one-pass", "two-pass"])
def test_a_pruning_killed_at_twenty_random_moments_is_that_of_an_undisturbed_run(order, tmp_path):
    model = make_model("llama", tmp_path / "model", vocab_size=4096, num_hidden_layers=32)
    add_tokenizer(model)
    settings = ["--model", str(model), "--method", "sparsegpt", "--sparsity", "0.5", "--quiet"]
    settings += ["--samples", "32", "--sequence-length", "64", "--set", f"prune.order={order}"]

    def weights(run: str) -> bytes:
        return (tmp_path / f"workspace/{run}/prune/model.safetensors").read_bytes()

    common = ["prune", *settings, "--workspace", str(tmp_path / "workspace"), "--run"]
    # The same number of threads: with another one sums come out otherwise in their last bits.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*SPP, *common, "calm"], check=True, capture_output=True, env=one_thread)
    kills, seed = 0, 0
    while kills < 20:  # a run that was through before its twentieth kill is followed by another
        done = subprocess.run(
            [sys.executable, "-c", KILLED_OFTEN, str(tmp_path), *common, f"r{seed}", str(seed)],
            capture_output=True,
            text=True,
            check=True,
            env=one_thread,
        )
        killed, code = map(int, done.stdout.split()[-2:])
        assert code == 0, done.stderr
        assert weights(f"r{seed}") == weights("calm")
        kills, seed = kills + killed, seed + 1
    assert kills >= 20
