"""What the README and the pages in docs/ say works as they say."""

from __future__ import annotations

import importlib
import re
import shlex
from itertools import chain
from pathlib import Path

import pytest
import torch
import typer
from end_to_end.mistakes import configuration, models, runs, texts
from torch.nn.functional import linear

from spp_cli.adapters.frozen import DenseWeight
from spp_cli.cli import app
from spp_cli.pruning.statistics import InputNorm
from spp_cli.reporting.failures import failure
from spp_cli.sparsity.patterns import NofM

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
# spp itself, or as a module of accelerate's or torchrun's
COMMAND = re.compile(r"(?:^spp|^accelerate launch .*-m spp_cli|^torchrun .*-- spp_cli) (.*)")


def blocks(text: str, language: str = "") -> list[str]:
    """Return the contents of the code blocks that are marked with ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def examples(text: str) -> list[str]:
    """Return what is typed after ``spp`` in the plain code blocks, comments left out."""
    lines = chain.from_iterable(block.splitlines() for block in blocks(text))
    found = filter(None, map(COMMAND.match, lines))
    return sorted({match[1].split(" #")[0].strip() for match in found})


EXAMPLES = [(page, example) for page, text in PAGES.items() for example in examples(text)]


def test_there_is_an_example_of_every_command():
    shown = {shlex.split(example)[0] for example in examples(README)}
    assert shown == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("page", "example"), EXAMPLES, ids=lambda text: text)
def test_every_example_is_a_command_with_options_that_exist(page, example):
    name, *arguments = shlex.split(example)
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    if hasattr(command, "commands"):  # of two words
        name, *arguments = arguments
        command = command.commands[name]
    context = command.make_context(name, list(arguments), resilient_parsing=False)
    assert context.params


@pytest.mark.parametrize("page", PAGES)
def test_the_files_it_names_are_there(page):
    text = PAGES[page]
    for script in re.findall(r"\./scripts/[a-z_]+\.sh", text):
        assert (ROOT / script).stat().st_mode & 0o100, script
    for path in re.findall(r"\b(?:configs|tests|spp_cli)/[\w/.-]+\.(?:yaml|py)\b", text):
        if path != "spp_cli/pruning/random.py":  # that of the example
            assert (ROOT / path).is_file(), path


def test_the_messages_that_are_explained_are_real():
    tables = (configuration, models, texts, runs)
    mistakes = chain.from_iterable(table.MISTAKES for table in tables)
    real = {line for mistake in mistakes for line in mistake.says.splitlines()}
    real |= {failure(error)[0] for error in (MemoryError(), KeyboardInterrupt())}
    quoted = re.findall(r"^error: (.*)", PAGES["docs/troubleshooting.md"], re.MULTILINE)
    assert quoted
    assert [line for line in quoted if line not in real] == []


def imported(source: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Import an example as a module called ``name``."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(name)


def test_the_example_of_a_method_is_one(tmp_path, monkeypatch):
    (source,) = blocks(README, "python")
    module = imported(source, "example_of_a_method", tmp_path, monkeypatch)
    pruned = module.Random(lot=1).prune(torch.randn(3, 8), None, NofM(2, 8))
    assert (pruned.keep.sum(dim=1) == 2).all()
    assert not pruned.weight[~pruned.keep].count_nonzero()


def test_the_longer_examples_are_a_method_a_statistic_and_an_adapter(tmp_path, monkeypatch):
    method, statistic, adapter = (
        imported(source, f"longer_example_{number}", tmp_path, monkeypatch)
        for number, source in enumerate(blocks(PAGES["docs/adding-a-method.md"], "python"))
    )
    inputs, weight = torch.randn(2, 5, 8), torch.randn(3, 8)
    norm = InputNorm(8, torch.device("cpu"))
    mean = statistic.InputMagnitude(8, torch.device("cpu"))
    for counted in (norm, mean):
        counted.update(inputs, samples=2)
    torch.testing.assert_close(mean.mean(), inputs.abs().sum(dim=(0, 1)) / 2)

    between = method.Between()
    pruned = between.prune(weight, between.prepare(norm), NofM(2, 4))
    assert (pruned.keep.view(3, 2, 4).sum(dim=2) == 2).all()
    assert torch.equal(pruned.weight[pruned.keep], weight[pruned.keep])

    adapted = adapter.Rows().wrap(DenseWeight(pruned.weight, pruned.keep), None)
    assert torch.equal(adapted(inputs), linear(inputs, pruned.weight))
    factors = adapted.a.detach().clone().requires_grad_()
    linear(inputs, pruned.weight * (1 + factors)).square().sum().backward()
    adapted(inputs).square().sum().backward()
    torch.testing.assert_close(adapted.a.grad, factors.grad)
    assert not adapted.effective_weight()[~pruned.keep].count_nonzero()
