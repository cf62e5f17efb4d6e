"""The ready configurations, and the reference on its page that is made from the models."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from spp_cli import fields, yaml12
from spp_cli.config import SppConfig
from spp_cli.pruning import TABLE
from spp_cli.settings import Layer, dump_yaml, read_yaml, validate
from spp_cli.sweeps.sweep import read_sweep

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "configs").glob("sweep-*.yaml"))
READY = sorted({*(ROOT / "configs").glob("*.yaml")} - {*SWEEPS})


def test_there_is_one_for_each_model_that_is_promised() -> None:
    promised = (
        "demo-recovery demo llama-13b llama-30b llama-7b llama2-13b llama2-70b llama2-7b "
        "llama3.1-8b mistral-7b opt-125m qwen3-8b"
    )
    assert [path.stem for path in READY] == promised.split()


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_it_loads_and_its_dump_reads_back_equal(path: Path) -> None:
    config = validate(read_yaml(path))
    assert validate(Layer(yaml12.parse(dump_yaml(config)))) == config


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_it_says_what_to_expect_and_sets_what_matters(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    layer = read_yaml(path)
    assert text.startswith("# ")
    assert {"model", "seed", "prune", "finetune", "eval"} <= set(layer.values)
    assert max(map(len, text.splitlines())) <= 100


def test_the_sweep_of_the_embedded_model_has_its_thirty_points() -> None:
    sweep = read_sweep(str(ROOT / "configs" / "sweep-demo.yaml"), Layer())
    assert len({point.pruned_as() for point in sweep.points}) == 15
    assert sorted({point.config.prune.sparsity for point in sweep.points}) == [0.5, 0.6, 0.75]
    assert [point.name for point in sweep.points[:2]] == [
        "sweep-demo-magnitude-0.5-none",
        "sweep-demo-magnitude-0.5-spp",
    ]
    assert len(sweep.points) == 30


def test_every_method_is_in_the_league_at_every_amount() -> None:
    sweep = read_sweep(str(ROOT / "configs" / "sweep-league.yaml"), Layer())
    prunes = [point.config.prune for point in sweep.points]
    amounts = {(prune.pattern, prune.sparsity) for prune in prunes}
    assert {pattern for pattern, _ in amounts} == {"unstructured", "2:4", "4:8", "2:8"}
    for name in TABLE:
        mine = [prune for prune in prunes if prune.method.name == name]
        assert {(prune.pattern, prune.sparsity) for prune in mine} == amounts


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_points_of_a_sweep_share_one_budget_and_one_workspace(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    points = read_sweep(str(path), Layer()).points
    assert len({point.config.workspace for point in points}) == 1
    assert len({point.config.finetune.data.samples for point in points}) == 1
    assert len({point.config.prune.calibration for point in points}) == 1


HUB = [path for path in READY if not path.stem.startswith("demo")]


@pytest.mark.parametrize("path", HUB, ids=lambda path: path.stem)
def test_a_model_from_the_hub_is_finetuned_with_the_published_settings(path: Path) -> None:
    finetune = validate(read_yaml(path)).finetune
    rows = 256 if path.stem == "llama-30b" else 128  # as the released README's commands
    assert finetune.batch_size * finetune.gradient_accumulation_steps == rows
    assert (finetune.epochs, finetune.data.sequence_length) == (3.0, 512)
    assert (finetune.adapter.r, finetune.adapter.scale) == (16, 2.0)


def test_the_embedded_defaults_are_the_demo_configuration() -> None:
    packaged = ROOT / "spp_cli" / "demo" / "defaults.yaml"
    assert packaged.read_bytes() == (ROOT / "configs" / "demo.yaml").read_bytes()


def write_reference(page: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> object:
    """Run the script; return what it exits with, None being success."""
    script = str(ROOT / "scripts" / "config_reference.py")
    monkeypatch.setattr(sys, "argv", [script, "--page", str(page), *options])
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code or None
    return None


def test_the_reference_is_written_between_its_markers_and_found_stale_by_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Configuration\n")
    assert "no place for the reference" in str(write_reference(page, monkeypatch))

    page.write_text(
        "before\n<!-- configuration reference: written by scripts/config_reference.py -->\n"
        "<!-- end of the configuration reference -->\nafter\n"
    )
    assert "is stale" in str(write_reference(page, monkeypatch, "--check"))
    assert write_reference(page, monkeypatch) is None
    assert write_reference(page, monkeypatch, "--check") is None

    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert [key for key, _ in fields.walk(SppConfig) if f"| `{key}` |" not in text] == []
