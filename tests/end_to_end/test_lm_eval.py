"""The folders of stages as the command of lm-evaluation-harness reads them: the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from spp_cli.cli import app

pytestmark = pytest.mark.slow  # the harness's command takes some twenty seconds to begin

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/sums.jsonl, train: FOLDER/sums.jsonl}}
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: question
doc_to_choice: options
doc_to_target: right
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 1}
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with a task of one's own and its questions."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        {"question": f"{n} + 1 =", "options": [str(n + 1), "a pie", f"{n}"], "right": n % 3}
        for n in range(40)
    ]
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "sums.yaml").write_text(TASK.replace("FOLDER", str(folder)))
    return folder


def by_the_harness(folder, tasks, output, *options):
    """Return what ``lm_eval`` finds in a model folder, without a network."""
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"),
        *("--model_args", f"pretrained={folder},dtype=float32"),
        *("--tasks", "sums", "--include_path", str(tasks), "--output_path", str(output), *options),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(output / "cache")}
    done = subprocess.run(
        command, env={**os.environ, **offline}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = output.rglob("results_*.json")
    return json.loads(file.read_text())["results"]["sums"]


@pytest.mark.parametrize(("stage", "shots"), [("prune", 0), ("merge", 2)])
def test_lm_eval_finds_in_a_stages_folder_what_spp_eval_does(
    side_by_side, tasks, tmp_path, stage, shots
):
    folder = side_by_side.root / "wanda" / stage
    options = ["--tasks", "sums", "--task-folder", str(tasks), "--num-fewshot", str(shots)]
    done = CliRunner().invoke(
        app, ["eval", "--path", str(folder), "--device", "cpu", *options, "--json"]
    )
    assert done.exit_code == 0, done.stderr
    (model,) = json.loads(done.stdout)["models"].values()
    ours = model["results"]["sums"]
    theirs = by_the_harness(folder, tasks, tmp_path / "out", "--num_fewshot", str(shots))
    assert ours["samples"] == theirs["sample_len"] == 40
    for metric in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr"):
        assert ours["metrics"][metric] == theirs[f"{metric},none"]
