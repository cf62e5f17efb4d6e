"""spp status: what the workspace holds."""

from __future__ import annotations

from spp_cli.commands.command import Command, Given, workspace_of
from spp_cli.commands.parameters import WORKSPACE, argument
from spp_cli.progress import Reporter
from spp_cli.reporting import tables
from spp_cli.reporting.answer import Answer
from spp_cli.reporting.story import rounding
from spp_cli.status import run_status

__all__ = ["STATUS"]


def _status(given: Given, _: Reporter) -> Answer:
    workspace = workspace_of(given)
    if given["run"] is None:
        rows = [run_status(run) for run in workspace.runs()]
        text = tables.status_table(rows) if rows else f"{workspace.root} has no runs yet"
        return Answer({"workspace": str(workspace.root), "runs": rows}, text)
    status = run_status(workspace.existing_run(given["run"]))
    text = f"{tables.status_table([status])}\n\n{tables.run_table(status['stages'])}"
    if cost := rounding(status):
        text += f"\n\nmerge: {cost}"
    return Answer(status, text)


STATUS = Command(
    [argument("run", "Name of a run", kind=str | None), WORKSPACE],
    _status,
)
