"""Real processes, killed at any moment: the old result or a partial one, then the same again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import add_tokenizer, make_model
from typer.testing import CliRunner

from spp_cli.cli import app
from spp_cli.training.callbacks import REPRODUCIBLE
from spp_cli.workspace import Workspace

SETTINGS = [
    *("--set", "prune.calibration.samples=24", "--set", "prune.calibration.sequence_length=64"),
    *("--set", "finetune.data.samples=24", "--set", "finetune.data.sequence_length=64"),
    *("--set", "finetune.data.validation_samples=4", "--set", "finetune.batch_size=4"),
    *("--set", "finetune.evaluate_every=3", "--set", "finetune.checkpoint_every=1"),
    *("--set", "eval.tasks=[perplexity]", "--set", "eval.perplexity.max_chunks=8"),
]
COMMANDS = ("prune", "finetune", "merge", "eval")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute here as the processes do: with more threads sums come out otherwise in last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(command: str, workspace: Path) -> list[str]:
    return [command, "--workspace", str(workspace), "--run", "r", *SETTINGS]


def start(command: str, workspace: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "spp_cli", *small(command, workspace), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ONE_THREAD,
        # Where the tests run in the background, SIGINT would be ignored from the start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def spp(*arguments: str) -> None:
    """Run a command to its end, in this process, which has imported everything already."""
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output


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
        spp(*small(command, calm))
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
            spp("status", "--workspace", str(shaken), "--json")
        spp(*small(command, shaken))
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
    spp(*small("prune", tmp_path))
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
import importlib, os, random, signal, sys, time
import torch
from transformers import AutoModelForCausalLM
from spp_cli.cli import app
from spp_cli.pipeline import MODULES

torch.set_num_threads(1)
model, progress, seed, *command = sys.argv[1:]
importlib.import_module(MODULES[command[0]])
AutoModelForCausalLM.from_pretrained(model)  # what transformers reads but once
moments, kills = random.Random(int(seed)), 0

def work_done():
    return os.stat(progress).st_mtime_ns if os.path.exists(progress) else None

def has_ended(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

while True:
    before = work_done()
    child = os.fork()
    if not child:
        app(command)
        os._exit(9)  # never reached
    if kills < 20:  # when 20 have struck, the last child is left alone
        # Every other kill waits until work goes on; the others come at any time, some too early.
        while kills % 2 and work_done() == before and not has_ended(child):
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.6 if kills % 2 else 1.2))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
    kills += 1
print(kills, os.WEXITSTATUS(status))
"""


def kill_often(command: list[str], model: Path, partial: Path, seed: int) -> int:
    """Kill a command at up to 20 random moments, then let it end; return how often it was."""
    arguments = [str(model), str(partial / "progress.json"), str(seed), *command]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_OFTEN, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=ONE_THREAD,
    )
    kills, code = map(int, done.stdout.split()[-2:])
    assert code == 0, done.stderr
    return kills


@pytest.mark.slow
@pytest.mark.parametrize("order", ["one-pass", "two-pass"])
def test_a_pruning_killed_at_twenty_random_moments_is_that_of_an_undisturbed_run(order, tmp_path):
    model = make_model("llama", tmp_path / "model", vocab_size=4096, num_hidden_layers=32)
    add_tokenizer(model)
    settings = ["--model", str(model), "--method", "sparsegpt", "--sparsity", "0.5", "--quiet"]
    settings += ["--samples", "32", "--sequence-length", "64", "--set", f"prune.order={order}"]

    def weights(run: str) -> bytes:
        return (tmp_path / run / "r/prune/model.safetensors").read_bytes()

    # Each in a workspace of its own: in a common one it would be pruned once and linked.
    common = ["prune", *settings, "--run", "r", "--workspace"]
    spp(*common, str(tmp_path / "calm"))
    kills, seed = 0, 0
    while kills < 20:  # a run that was through before its twentieth kill is followed by another
        run = f"shaken-{seed}"
        partial = tmp_path / run / "r/prune.partial"
        kills += kill_often([*common, str(tmp_path / run)], model, partial, seed)
        assert weights(run) == weights("calm")
        seed += 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "rhythm",
    [("--evaluate-every", "4", "--checkpoint-every", "1"), ("--evaluate-every", "3")],
    ids=["a checkpoint a step", "a checkpoint every three"],
)
def test_a_finetuning_killed_at_twenty_random_moments_is_that_of_an_undisturbed_run(
    rhythm, tmp_path
):
    model = add_tokenizer(make_model("llama", tmp_path / "model", vocab_size=4096))
    place = ["--workspace", str(tmp_path / "workspace"), "--run"]
    prune = ["prune", "--model", str(model), "--method", "magnitude", "--pattern", "2:4"]
    spp(*prune, *place, "pruned")
    text = tmp_path / "text.txt"  # short, so that most of the time is training
    text.write_text("".join(f"def add_{n}(x): return x + {n}\n" for n in range(200)))
    common = ["finetune", "--data", str(text), "--sequence-length", "32", "--epochs", "8"]
    common += ["--set", "finetune.data.samples=24", "--set", "finetune.data.validation_samples=4"]
    common += ["--learning-rate", "0.05", "--batch-size", "4", "--accumulation", "2", "--quiet"]
    common += [*rhythm, *place]

    def begin(run: str) -> list[str]:
        shutil.copytree(tmp_path / "workspace/pruned", tmp_path / "workspace" / run)
        return [*common, run]

    def left(run: str) -> tuple[bytes, list[dict[str, object]]]:
        """Return the adapter, and the log without times."""
        folder = tmp_path / f"workspace/{run}/finetune"
        log = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        lines = [{key: line.get(key) for key in REPRODUCIBLE} for line in log]
        return (folder / "adapter.safetensors").read_bytes(), lines

    spp(*begin("calm"))
    kills, seed = 0, 0
    while kills < 20:
        run = f"r{seed}"
        partial = tmp_path / f"workspace/{run}/finetune.partial"
        kills += kill_often(begin(run), model, partial, seed)
        assert left(run) == left("calm")
        seed += 1


# As above, but each child is killed at a chosen operation on the disk, once training is through.
KILLED_AT_EVERY_OPERATION = """
import importlib, os, signal, sys
import torch
from spp_cli.cli import app
from spp_cli.pipeline import MODULES

torch.set_num_threads(1)
workspace, last, *command = sys.argv[1:]
importlib.import_module(MODULES[command[0]])
changes = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")

def kill_at(operation):
    trained, done = os.path.exists(last), 0

    def hook(event, arguments):
        nonlocal trained, done
        opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        # Names below an open folder, in its removal, are relative to it.
        here = opened and str(arguments[0]).startswith(workspace)
        if not here and event not in changes:
            return
        if trained:
            done += 1
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)
        trained = trained or os.path.exists(last) and os.path.getsize(last) > 0

    sys.addaudithook(hook)

operation, code = 0, None
while code is None:
    operation += 1
    child = os.fork()
    if not child:
        kill_at(operation)
        app(command)
        os._exit(9)  # never reached
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        code = os.WEXITSTATUS(status)
print(operation - 1, code)
"""


@pytest.mark.slow
def test_a_finetuning_killed_at_every_operation_after_its_last_step_leaves_the_same_files(
    tmp_path,
):
    model = add_tokenizer(make_model("llama", tmp_path / "model", vocab_size=4096))
    text = tmp_path / "text.txt"
    text.write_text("".join(f"def add_{n}(x): return x + {n}\n" for n in range(200)))
    place = ["--workspace", str(tmp_path / "w"), "--run", "r"]
    spp("prune", "--model", str(model), "--method", "magnitude", "--pattern", "2:4", *place)
    command = ["finetune", "--data", str(text), "--sequence-length", "32", "--max-steps", "4"]
    command += ["--set", "finetune.data.samples=24", "--set", "finetune.data.validation_samples=4"]
    command += ["--learning-rate", "0.05", "--batch-size", "4", "--accumulation", "1", "--quiet"]
    command += ["--set", "finetune.schedule=constant", *place]
    spp(*command)
    shaken = tmp_path / "w/r/finetune"
    calm = shaken.rename(tmp_path / "calm")
    last = tmp_path / "w/r/finetune.partial/.resume/checkpoint-4/complete.json"
    script = [sys.executable, "-c", KILLED_AT_EVERY_OPERATION, str(tmp_path), str(last)]
    done = subprocess.run(
        [*script, *command], capture_output=True, text=True, check=True, env=ONE_THREAD
    )
    kills, code = map(int, done.stdout.split()[-2:])
    assert code == 0, done.stderr
    assert kills > 20

    def left(folder: Path) -> dict[str, object]:
        """Return every file, without what it says of times and of the machine."""
        names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        files: dict[str, object] = {str(name): (folder / name).read_bytes() for name in names}
        log = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        files["log.jsonl"] = [{key: line.get(key) for key in REPRODUCIBLE} for line in log]
        record = json.loads((folder / "manifest.json").read_text())
        for key in ("started", "finished", "seconds", "peak_memory_bytes", "sha256"):
            record.pop(key)
        record["files"].pop("log.jsonl")  # its size
        return {**files, "manifest.json": record}

    assert left(shaken) == left(calm)
    assert not list((tmp_path / "w/r").glob("finetune.*"))
