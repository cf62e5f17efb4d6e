"""spp status: what the workspace holds."""

from __future__ import annotations

from spp_cli.commands.command import WORKSPACE, Command, Given, argument
from spp_cli.errors import ConfigError
from spp_cli.invocation import default_workspace
from spp_cli.progress import Reporter
from spp_cli.reporting import tables
from spp_cli.reporting.answer import Answer
from spp_cli.status import run_status
from spp_cli.workspace import Run, Workspace

__all__ = ["STATUS", "existing_run"]


def _status(given: Given, _: Reporter) -> Answer:
    workspace = Workspace(given["workspace"] or default_workspace())
    if given["run"] is None:
        rows = [run_status(run) for run in workspace.runs()]
        text = tables.status_table(rows) if rows else f"{workspace.root} has no runs yet"
        return Answer({"workspace": str(workspace.root), "runs": rows}, text)
    run = existing_run(workspace, given["run"])
    status = run_status(run)
    text = f"{tables.status_table([status])}\n\n{tables.run_table(status['stages'])}"
    return Answer(status, text)


def existing_run(workspace: Workspace, name: str) -> Run:
    """Return the run of this name.

    Raises:
        ConfigError: there is none; the message names those that are there.
        WorkspaceError: no run can have the name.
    """
    run = workspace.run(name)
    if not run.exists():
        names = ", ".join(found.name for found in workspace.runs()) or "none"
        raise ConfigError(f"{workspace.root} has no run {run.name}. Runs there: {names}")
    return run


STATUS = Command(
    "status",
    "Show the runs in the workspace, or one run stage by stage.",
    [argument("run", "Name of a run", kind=str | None), WORKSPACE],
    _status,
)
