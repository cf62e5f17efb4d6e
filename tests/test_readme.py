"""What the README says works as it says."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

from spp_cli.cli import app
from spp_cli.sparsity.patterns import NofM

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = sorted(
    {
        line.split(" #")[0].strip()
        for block in re.findall(r"```\n(.*?)```", README, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("spp ")
    }
)


def test_there_is_an_example_of_every_command():
    shown = {shlex.split(example)[1] for example in EXAMPLES}
    assert shown == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_a_command_with_options_that_exist(example):
    _, name, *arguments = shlex.split(example)
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    context = command.make_context(name, list(arguments), resilient_parsing=False)
    assert context.params


def test_the_example_of_a_method_is_one(tmp_path, monkeypatch):
    (source,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "example_of_a_method.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("example_of_a_method")
    pruned = module.Random(lot=1).prune(torch.randn(3, 8), None, NofM(2, 8))
    assert (pruned.keep.sum(dim=1) == 2).all()
    assert not pruned.weight[~pruned.keep].count_nonzero()


def test_the_scripts_it_names_are_there():
    for script in re.findall(r"\./scripts/[a-z_]+\.sh", README):
        assert (Path(__file__).parents[1] / script).stat().st_mode & 0o100, script
