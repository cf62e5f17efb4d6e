"""The folder in which mistakes are made, and what is asked of the answer to each of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from end_to_end.mistakes.row import Mistake
from typer.testing import CliRunner

from spp_cli.cli import app
from spp_cli.models.checkpoint import locate

SMALL = """\
model: base
prune:
  calibration: {source: text.txt, samples: 2, sequence_length: 32}
finetune:
  data: {source: rows.jsonl, sequence_length: 64}
  max_steps: 1
  batch_size: 2
  gradient_accumulation_steps: 1
merge: {check_sequences: 1, check_length: 8}
eval:
  perplexity: {source: text.txt, sequence_length: 32, max_chunks: 1}
"""


@dataclass(frozen=True)
class End:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def make_folder(folder: Path) -> None:
    """Fill ``folder`` as ``mistakes.row`` describes it, the workspace with the commands."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    for file in locate("demo")[0].glob("tokenizer*"):
        shutil.copy(file, folder / "base")
    lines = [f"def add_{number}(x): return x + {number}\n" for number in range(60)]
    (folder / "text.txt").write_text("".join(lines))
    rows = [{"instruction": f"Add {number}.", "output": f"x + {number}"} for number in range(12)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "small.yaml").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("SPP_WORKSPACE", raising=False)
        for command in ("spp run small.yaml", "spp prune small.yaml --sparsity 0.6"):
            end = typed(command)
            assert end.code == 0, end.stderr


def typed(command: str) -> End:
    """Run a command in this process."""
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    return End(result.exit_code, result.stdout, result.stderr)


def spawned(
    command: str,
    environment: Mapping[str, str] | None = None,
    limit: Callable[[], object] | None = None,
) -> End:
    """Run a command in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-m", "spp_cli", *shlex.split(command)[1:]],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        preexec_fn=limit,
    )
    return End(process.returncode, process.stdout, process.stderr)


def contents() -> dict[str, str]:
    """Return the digest of every file here.

    Locks and remembered digests are no content, nor are tokens that the next run reads again.
    """
    ours = {".cache", ".calibration", ".training"}
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path().rglob("*"))
        if path.is_file() and path.name != ".lock" and not ours.intersection(path.parts)
    }


def check(mistake: Mistake, run: Callable[[str], End] = typed) -> None:
    """Make the mistake; it is answered by the lines expected and by nothing else."""
    for spoil in mistake.spoil:
        spoil()
    before = contents()
    end = run(f"{mistake.command} --quiet")
    expected = [f"error: {line}" for line in mistake.says.splitlines()]
    found = end.stderr.splitlines()
    assert len(found) == len(expected), end.stderr
    for line, pattern in zip(found, expected, strict=True):
        assert re.fullmatch(".*".join(map(re.escape, pattern.split("…"))), line), line
        assert len(line) < 400, line
    assert end.code == mistake.code
    assert mistake.code == 1 or end.stdout == ""
    assert contents() == before
