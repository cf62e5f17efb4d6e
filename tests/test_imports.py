"""Who may import whom, from the source itself: imports inside functions count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "spp_cli"
GROUND = {
    "atomic_files",
    "deferred",
    "records",
    "errors",
    "config",
    "settings",
    "yaml12",
    "reading",
    "foreign",
    "fields",
    "progress",
    "fingerprint",
    "stage_facts",
    "memory",
    "processes",
    "__init__",
}
# Each part with the level it stands on: it imports from its own level and from below.
LEVELS = {
    **dict.fromkeys(GROUND, 0),
    **dict.fromkeys(("models", "sparsity", "data", "demo"), 1),
    **dict.fromkeys(("pruning", "refining", "recovering", "allocation"), 2),
    **dict.fromkeys(("adapters", "training", "evaluation", "reporting"), 2),
    **dict.fromkeys(("generation", "benchmarking", "comparability"), 2),
    "stages": 3,
    **dict.fromkeys(("workspace", "runs", "publishing", "locking"), 3),
    **dict.fromkeys(("pipeline", "plan"), 4),
    **dict.fromkeys(("cli", "commands", "invocation", "status", "flags", "__main__"), 5),
    **dict.fromkeys(("card", "comparison", "difference", "push", "report"), 5),
    **dict.fromkeys(("named_models", "outputs", "run_choice", "sweeps"), 5),
}
WORKSPACE = {"workspace", "runs", "publishing", "locking"}
MAY_USE_THE_WORKSPACE = WORKSPACE | {
    "card",
    "commands",
    "comparison",
    "difference",
    "invocation",
    "push",
    "named_models",
    "outputs",
    "report",
    "run_choice",
    "status",
    "pipeline",
    "plan",
    "stages",
    "sweeps",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Yield the parts of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("spp_cli"):
            inner = node.module.split(".")[1:]
            yield from [inner[0]] if inner else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("spp_cli."):
                    yield alias.name.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_upward(path):
    here = LEVELS[part_of(path)]
    for part in imported(path):
        if part != "__version__":
            assert LEVELS[part] <= here, f"{path.name} imports {part}, which stands above it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_top_and_the_stages_know_the_layout_on_disk(path):
    if part_of(path) not in MAY_USE_THE_WORKSPACE:
        assert not WORKSPACE & set(imported(path))


def test_a_method_knows_nothing_but_its_types():
    for name in ("magnitude", "wanda", "sparsegpt"):
        known = set(imported(PACKAGE / "pruning" / f"{name}.py"))
        assert known <= {"pruning", "sparsity", "errors", "deferred"}


_SLOW = ("torch", "transformers", "datasets", "pandas", "lm_eval")  # seconds each


def spp_without_torch(arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a process, which fails with the code 99 if it imported what is slow."""
    code = (
        "import os, sys; from spp_cli.__main__ import main\n"
        f"sys.argv = ['spp', *{arguments.split()}]\n"
        "try: main()\n"
        "except SystemExit as ended: code = ended.code or 0\n"
        f"slow = [name for name in {_SLOW} if name in sys.modules]\n"
        "if slow: print('imported:', *slow, file=sys.stderr)\n"
        "sys.stdout.flush(); sys.stderr.flush(); os._exit(99 if slow else code)"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "arguments", ["--help", "prune --help", "status", "compare", "sweep --help", "--version"]
)
def test_help_and_status_do_not_wait_for_torch(arguments, tmp_path):
    done = spp_without_torch(arguments, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("prune --method wonda", "prune.method is 'wonda'"),
        ("prune --method sparsegpt --set prune.method.damping=-1", "prune.method.damping is -1"),
        ("prune --set prune.allocation.probes=0 --allocation sensitivity", "allocation.probes"),
        ("plan --pattern 9:4", "prune.pattern is '9:4'"),
        (
            "calibrate --set prune.refine.name=dsnot --set prune.refine.cycles=0",
            "prune.refine.cycles",
        ),
        ("finetune --set finetune.adapter.r=0", "finetune.adapter.r is 0"),
        ("finetune", "has no run with a pruned model"),
        ("merge", "has no run with a finetuned model"),
        ("run --set prune.recover.name=least-squares --set prune.recover.x=0", "prune.recover.x"),
        ("eval --stage prone", "eval.stages"),
        ("data check --set eval.limit=0", "eval.limit is 0"),
        ("bench nothing --batch-sizes 0", "--batch-sizes is '0'"),
    ],
)
def test_wrong_settings_are_refused_before_torch_is_imported(arguments, says, tmp_path):
    done = spp_without_torch(arguments, tmp_path)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
