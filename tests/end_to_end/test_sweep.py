"""A real sweep of a tiny model: killed, interrupted, with a point that fails, and ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_base_and_text

from spp_cli.pipeline import run_stages
from spp_cli.progress import Silent
from spp_cli.settings import Layer, assigned
from spp_cli.sweeps.sweep import read_sweep
from spp_cli.workspace import Workspace

BASE = """\
model: base
prune: {calibration: {source: text.txt, samples: 2, sequence_length: 32}}
finetune:
  data: {source: text.txt, samples: 8, sequence_length: 32}
  max_steps: 4
  batch_size: 2
  gradient_accumulation_steps: 1
  learning_rate: 0.01
merge: {check_sequences: 1, check_length: 8}
eval: {perplexity: {source: text.txt, sequence_length: 32, max_chunks: 2}}
"""
SWEEP = """\
base: base.yaml
grid:
  prune.method: [magnitude, wanda]
  finetune: [none, spp]
points:
  - {name: broken, prune.calibration.source: later.txt, stages: [prune, eval]}
"""
GOOD = [f"many-{name}" for name in ("magnitude-none", "magnitude-spp", "wanda-none", "wanda-spp")]
BROKEN = "many-broken"
COMMAND = [sys.executable, "-m", "spp_cli", "sweep", "many.yaml"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
RECORD = Path("workspace/.sweeps/many/points.json")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a tiny model, a text, and the two files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPP_WORKSPACE", raising=False)
    make_base_and_text(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("many.yaml").write_text(SWEEP)


def start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        # Where the tests run in the background, SIGINT would be ignored from the start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def sweep(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )


def wait_for(begun: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    while not begun():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def outcomes() -> dict[str, dict[str, str]]:
    """Return what is on record of each point."""
    return json.loads(RECORD.read_bytes())["points"]


def at_work() -> list[str]:
    """Return the runs that a process works on."""
    return [run.name for run in Workspace("workspace").runs() if run.holder()]


def stops_soon() -> bool:
    """Whether within seconds no process works on any run."""
    deadline = time.monotonic() + 30
    while at_work() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not at_work()


def test_killed_interrupted_and_with_a_point_that_fails_it_ends_in_what_single_runs_make():
    planned = json.loads(sweep("--dry-run", "--json").stdout)["points"]
    assert [row["point"] for row in planned] == [*GOOD, BROKEN]
    assert planned[1]["stages"]["prune"] == "as many-magnitude-none"
    assert not Path("workspace").exists()

    process = start()
    wait_for(Path("workspace/many-magnitude-spp/finetune.partial").exists, process)
    process.kill()
    process.communicate()
    assert stops_soon()

    process = start()
    wait_for(at_work, process)  # not for files, which the first process may have left
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert not at_work()
    assert "Run the same command again to go on" in errors
    # The broken point may have had its turn, while a point waited for another to prune.
    assert {outcomes()[name]["state"] for name in GOOD} <= {"waiting", "done"}

    ended = sweep("--jobs", "2", "--json")
    assert ended.returncode == 1, ended.stderr
    states = {row["point"]: row["state"] for row in json.loads(ended.stdout)["points"]}
    assert states == {**dict.fromkeys(GOOD, "done"), BROKEN: "failed"}
    assert "error: 1 of 5 points failed" in ended.stderr
    assert "later.txt" in outcomes()[BROKEN]["error"]

    Path("later.txt").write_text(Path("text.txt").read_text())
    ended = sweep()
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[0] == "5 points: 1 running, 4 done"
    assert "spp report --sweep many" in ended.stdout
    assert all(name in ended.stdout for name in (*GOOD, BROKEN))

    workspace = Workspace("workspace")
    for method in ("magnitude", "wanda"):
        manifests = [
            workspace.run(f"many-{method}-{how}").manifest("prune") for how in ("none", "spp")
        ]
        lent = [manifest.borrowed_from for manifest in manifests if manifest]
        assert sorted(map(str, lent)) in (
            ["None", f"many-{method}-{how}"] for how in ("none", "spp")
        )
        weights = [
            Path(f"workspace/many-{method}-{how}/prune/model.safetensors")
            for how in ("none", "spp")
        ]
        assert weights[0].samefile(weights[1])

    calm = assigned([("workspace", "calm", "")])
    point = read_sweep("many.yaml", calm).points[GOOD.index("many-wanda-spp")]
    for outcome in run_stages(point.stages, point.config, Silent(), run=point.name):
        shaken = workspace.run(point.name).manifest(outcome.stage)
        assert shaken is not None
        assert shaken.output_digest == outcome.manifest.output_digest, outcome.stage


def test_what_a_run_was_made_with_before_is_refused_before_any_point_runs():
    settings = "grid: {prune.method: [magnitude], prune.sparsity: [0.5, 0.6]}\nstages: [prune]\n"
    Path("many.yaml").write_text(f"base: base.yaml\n{settings}")
    for point in read_sweep("many.yaml", Layer()).points[1:]:
        run_stages(point.stages, point.config, Silent(), run=point.name)
    Path("many.yaml").write_text(
        f"base: base.yaml\nconfig: {{prune.calibration.seed: 1}}\n{settings}"
    )
    ended = sweep()
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: many.yaml:3: run many-magnitude-0.6 has its prune with other settings: "
        "prune.calibration.seed: 0 → 1. "
        "Remove the run, or choose another --workspace\n"
    )
    assert not RECORD.exists()


def test_a_layer_that_does_not_suit_a_pattern_is_told_before_any_point_runs():
    Path("many.yaml").write_text("base: base.yaml\ngrid: {prune.pattern: [2:4, 3:5]}\n")
    ended = sweep("--dry-run")
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "error: many.yaml:2: many-3of5: prune.pattern is '3:5'; model.layers."
    )
    assert ended.stderr.count("\n") == 1
    assert not Path("workspace").exists()


def test_a_sweep_that_is_running_is_not_started_again():
    process = start()
    wait_for(Path("workspace/.sweeps/many/many-magnitude-none.yaml").exists, process)
    second = sweep()
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert second.returncode == 2
    line = f"error: sweep many is in use by pid {process.pid} on host "
    assert second.stderr.splitlines()[-1].startswith(line)
