"""What a real process shows: the lines of spp and no others, whatever libraries would say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from end_to_end.terminals import in_a_terminal

SPP = [sys.executable, "-m", "spp_cli"]
ONE_STEP = [
    *("--set", "finetune.data.samples=4", "--set", "finetune.data.sequence_length=64"),
    *("--set", "finetune.data.validation_samples=4", "--set", "finetune.batch_size=4"),
    *("--set", "finetune.gradient_accumulation_steps=1", "--set", "finetune.max_steps=1"),
    *("--run", "r", "--force"),
]
CURSOR_IS_BACK = "\x1b[?25h"  # what a bar does last

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose workspace has the embedded model, pruned."""
    folder = tmp_path_factory.mktemp("output")
    done = spp(folder, "prune", "--method", "magnitude", "--run", "r")
    assert done.returncode == 0, done.stderr
    return folder


def environment() -> dict[str, str]:
    """Return this process's environment without what would quieten or redirect spp."""
    ours = ("SPP_", "TRANSFORMERS_", "DATASETS_", "HF_HUB_", "PYTHONWARNINGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "OMP_NUM_THREADS": "1"}


def spp(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run spp in ``folder``; what it shows goes into pipes."""
    return subprocess.run(
        [*SPP, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_finetune_shows_its_own_lines_and_no_others(folder, checkpointing):
    setting = f"finetune.gradient_checkpointing={checkpointing}"
    done = spp(folder, "finetune", *ONE_STEP, "--set", setting)
    assert done.returncode == 0
    expected = [
        r"data: 4 rows of demo; 4 rows to validate on(; tokenized before)?",
        r"trainable: [\d,]+ of [\d,]+ parameters in 42 linears",
        r"each step: 4 rows: 4 at once × 1 times × 1 process",
        r"finetune: 1/1 steps in [\d.]+ s",
        r"validation perplexity: [\d.]+ before, [\d.]+ after",
    ]
    shown = done.stderr.splitlines()
    assert len(shown) == len(expected), shown
    for line, pattern in zip(shown, expected, strict=True):
        assert re.fullmatch(pattern, line)
    assert re.fullmatch(r"finetune took [\d.]+ s: workspace/r/finetune", done.stdout.strip())


def test_a_quiet_finetune_shows_its_result_alone_and_json_is_one_document(folder):
    done = spp(folder, "finetune", *ONE_STEP, "--quiet", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout)["metrics"]["steps"] == 1


def test_in_a_terminal_the_bar_is_gone_before_an_error_is_shown(folder):
    wild = ["--set", "finetune.learning_rate=1e30", "--set", "finetune.max_grad_norm=1e30"]
    arguments = ("finetune", *ONE_STEP, *wild, "--set", "finetune.max_steps=3")
    code, shown = in_a_terminal(arguments, folder, environment())
    assert code == 2
    assert "0/3 steps" in shown
    before, _, after = shown.partition("error: finetune: ")
    assert before.rfind(CURSOR_IS_BACK) > before.rfind("steps")
    hint = r"Lower finetune\.learning_rate, or raise finetune\.warmup_ratio"
    others = "With other settings add --force, which discards what is unfinished"
    found = r"(validation )?loss is \w+|\S+ has weights of nan or inf"
    assert re.fullmatch(rf"({found}) at step \d\. {hint}\. {others}\s+", after)
    assert "Traceback" not in shown
