"""spp prune with unequal ratios, from the command line to the check of what it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from spp_cli.cli import app

FEW = ("--samples", "4", "--sequence-length", "64", "--run", "r")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPP_WORKSPACE", raising=False)


def spp(*arguments: str) -> Any:
    """Run a command; return what it answers with --json, and what it says besides."""
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), result.stderr


@pytest.mark.parametrize(
    ("allocation", "says"),
    [
        ("owl", "allocation owl: 0."),
        ('{"layers.0.*": 0.5, "*.mlp.*": 0.8}', "allocation globs: 0.5 for layers.0.*, 0.8 for"),
    ],
)
def test_the_embedded_model_loses_what_was_asked_and_every_command_knows_where(
    allocation: str, says: str
) -> None:
    document, said = spp("prune", "--sparsity", "0.7", "--allocation", allocation, *FEW)
    assert says in said
    metrics = document["metrics"]
    assert metrics["sparsity"] == pytest.approx(0.7, abs=1e-4)
    blocks = metrics["allocation"]["blocks"].values()
    assert len(blocks) == 6
    assert sum(blocks) / 6 == pytest.approx(0.7, abs=1e-9)  # six blocks of one size
    assert max(blocks) - min(blocks) > 0.1

    report, _ = spp("verify", "workspace/r/prune")
    found = {layer["name"]: layer["sparsity"] for layer in report["layers"]}
    assert found == {name: layer["sparsity"] for name, layer in metrics["layers"].items()}
    manifest = json.loads(Path("workspace/r/prune/manifest.json").read_text())
    assert manifest["metrics"]["allocation"] == metrics["allocation"]

    again = yaml.safe_load(Path("workspace/r/prune/config.yaml").read_text())
    assert again["prune"]["allocation"]["name"] == metrics["allocation"]["name"]
    assert spp("prune", "workspace/r/prune/config.yaml")[0]["skipped"]
