"""spp compare: the numbers of many runs in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spp_cli.commands.command import (
    Command,
    Given,
    check_word,
    chosen_stages,
    named_runs,
    workspace_of,
)
from spp_cli.commands.parameters import SWEEP_NAME, WORKSPACE, argument, option
from spp_cli.comparison import MADE_BY, mark, rows
from spp_cli.fingerprint import write_text
from spp_cli.outputs import check_output
from spp_cli.progress import Reporter
from spp_cli.reporting.answer import Answer
from spp_cli.reporting.columns import check, filtered, ordered, split, without_settings
from spp_cli.reporting.comparison_table import FORMATS, comparison, is_comparison

__all__ = ["COMPARE"]

_SUFFIXES = {
    ".csv": "csv", ".json": "json", ".md": "markdown", ".tex": "latex", ".txt": "text", "": "text",
}  # fmt: skip


def _compare(given: Given, _: Reporter) -> Answer:
    workspace = workspace_of(given)
    output, suffixes = given["output"], () if given["format"] else _SUFFIXES
    if output:
        check_output(output, "--output", "a table", is_comparison, suffixes)
    form = given["format"] or _SUFFIXES[Path(output or "").suffix.lower()]
    check_word("--format", form, FORMATS)
    stages = chosen_stages(given, MADE_BY)
    runs = named_runs(given, workspace) or workspace.runs()
    found: Sequence[Any] = rows(runs)
    evaluated = {name for row in found for name in row["runs"]}
    without = [run.name for run in runs if run.name not in evaluated]
    if not found:
        missing = f"{', '.join(without) or workspace.root}: no evaluation yet. Run: spp eval"
        return Answer({"workspace": str(workspace.root), "rows": [], "without": without}, missing)
    columns = [check(name, found, "--columns") for name in split(given["columns"] or "", found)]
    if form in ("csv", "json"):
        columns = columns or without_settings(found)  # also where no row is left
    found = ordered(found, [key for text in given["sort"] or [] for key in split(text, found)])
    found = filtered(found, given["filter"] or [])
    found = [row for row in found if not stages or row["stage"] in stages]
    mark(found)  # against what is left
    document = {"workspace": str(workspace.root), "rows": found, "without": without}
    text = comparison(found, columns, form)
    if output:
        write_text(Path(output).expanduser(), f"{text}\n")
        return Answer({**document, "output": output}, f"{len(found)} rows: {output}")
    if form == "text":
        text = text if found else "no row is left; --filter or --stage leaves all of them out"
        text += f"\n\nWithout an evaluation: {', '.join(without)}" if without else ""
    return Answer(document, text)


COMPARE = Command(
    [
        argument("runs", "Names of runs; default: all", metavar="RUN", kind=list[str] | None),
        option("sort", "Sort by columns; -COLUMN descending", metavar="COLUMN,...", kind=list[str]),
        option(
            "filter",
            "Keep rows that pass: =, !=, <, <=, >, >=, ~ (glob); may be given more than once",
            metavar="'COLUMN OP VALUE'",
            kind=list[str],
        ),
        option(
            "columns",
            "Show these columns, settings such as finetune.learning_rate among them",
            metavar="COLUMN,...",
        ),
        option("stage", "Show only these: dense, prune, finetune, merge", metavar="STAGE,..."),
        option(
            "format",
            f"{', '.join(FORMATS)}; default: what the file's name ends in, or text",
            metavar="FORMAT",
        ),
        option("output", "Write the table to this file", metavar="FILE"),
        SWEEP_NAME,
        WORKSPACE,
    ],
    _compare,
)
