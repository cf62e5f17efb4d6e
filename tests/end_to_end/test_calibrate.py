"""Calibration tokens of a workspace, by real processes: killed, at once, and without the hub."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import make_base_and_text
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SPP = [sys.executable, "-m", "spp_cli"]
UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "no_proxy": "*"}
SMALL = ["--model", "base", "--samples", "8", "--sequence-length", "32"]
KEPT = Path("workspace/.calibration")
SHARD = "en/c4-train.00000-of-01024.json.gz"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a tiny model and a text."""
    make_base_and_text(tmp_path)
    monkeypatch.chdir(tmp_path)


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SPP, *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def finish(process: subprocess.Popen[str]) -> Any:
    """Return the document that a process ends with."""
    document, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(document)


def files() -> dict[str, int]:
    """Return the time of change of every file of tokens."""
    return {path.name: path.stat().st_mtime_ns for path in KEPT.glob("*.safetensors")}


def test_all_runs_of_a_workspace_are_pruned_with_the_tokens_that_were_drawn_once() -> None:
    asked = [*SMALL, "--calibration", "text.txt"]
    kept = finish(start("calibrate", *asked))
    (written,) = files().items()
    for method in ("wanda", "sparsegpt"):
        document = finish(start("prune", *asked, "--method", method))
        assert document["metrics"]["calibration"]["digest"] == kept["digest"]
    assert files() == dict([written])
    status = finish(start("status"))
    assert sorted(run["run"] for run in status["runs"]) == ["base-sparsegpt-0.5", "base-wanda-0.5"]


def test_a_kill_at_any_moment_leaves_whole_files_or_none() -> None:
    asked = ["--model", "base", "--calibration", "text.txt", "--samples", "512"]
    moments = random.Random(0)
    killed = 0
    for seed in ("0", "1"):
        process = start("calibrate", *asked, "--seed", seed)
        while not KEPT.exists() and process.poll() is None:
            time.sleep(0.0005)
        time.sleep(moments.uniform(0, 0.005))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        for name in files():
            assert load_file(KEPT / name)["tokens"].shape == (512, 64)
        shutil.rmtree(KEPT)
    assert killed
    kept = finish(start("calibrate", *asked))
    assert load_file(kept["path"])["tokens"].shape == (512, 64)


def test_processes_that_draw_the_same_at_once_agree() -> None:
    asked = [*SMALL, "--calibration", "text.txt"]
    documents = [finish(process) for process in [start("calibrate", *asked) for _ in range(2)]]
    assert len({(document["path"], document["digest"]) for document in documents}) == 1
    assert [path.name for path in KEPT.iterdir()] == [Path(documents[0]["path"]).name]


def test_what_was_drawn_from_the_hub_needs_no_hub_any_more() -> None:
    # The hub's cache, as the hub's own client lays it out.
    cache = Path("hub/hub/datasets--allenai--c4")
    shard = cache / "snapshots" / ("0" * 40) / SHARD
    shard.parent.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("0" * 40)
    rows = [json.dumps({"text": f"def add_{n}(x): return x + {n}\n" * 9}) for n in range(40)]
    shard.write_bytes(gzip.compress("\n".join(rows).encode()))
    hub = {**UNREACHABLE, "HF_HOME": str(Path("hub").absolute())}
    kept = finish(start("calibrate", *SMALL, "--calibration", "c4", **hub))
    assert kept["source"] == "c4"
    shutil.rmtree("hub")
    document = finish(start("prune", *SMALL, "--calibration", "c4", **hub))
    assert document["metrics"]["calibration"]["digest"] == kept["digest"]
    anew = ["--run", "anew", "--set", "prune.calibration.seed=1"]
    other = start("prune", *SMALL, "--calibration", "c4", *anew, **hub)
    _, errors = other.communicate()
    assert other.returncode == 2
    assert "no connection to the hub, nor a copy in its cache" in errors
