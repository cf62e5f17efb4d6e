"""spp card: the model card of a run, written anew."""

from __future__ import annotations

from spp_cli.card import write_card
from spp_cli.commands.command import WORKSPACE, Command, Given, argument, switch, workspace_of
from spp_cli.config import nearest
from spp_cli.errors import ConfigError
from spp_cli.progress import Reporter
from spp_cli.publishing import ARCHIVE
from spp_cli.reporting.answer import Answer
from spp_cli.workspace import Run, Workspace

__all__ = ["CARD", "RUN_AND_STAGE", "model_of"]

_STAGES = ("merge", "prune", ARCHIVE)  # those that leave a whole model, and its archive


def model_of(workspace: Workspace, text: str, stages: tuple[str, ...] = _STAGES) -> tuple[Run, str]:
    """Return the run and the stage that RUN or RUN/STAGE names; merge if it names none.

    Raises:
        ConfigError: no stage that leaves a model.
        WorkspaceError: no such run.
    """
    name, slash, stage = text.partition("/")
    if slash and stage not in stages:
        raise ConfigError(
            f"{text} names no model of run {name}; must be one of "
            f"{', '.join(stages)}{nearest(stage, stages)}"
        )
    return workspace.existing_run(name), stage or stages[0]


def _card(given: Given, _: Reporter) -> Answer:
    run, stage = model_of(workspace_of(given), given["run"], _STAGES[:2])
    path = write_card(run, stage, force=given["force"])
    return Answer({"run": run.name, "stage": stage, "file": str(path)}, f"model card: {path}")


RUN_AND_STAGE = "A run, or RUN/STAGE: merge (default), prune"
CARD = Command(
    "card",
    "Write the model card of a run anew, with the results that there are.",
    [
        argument("run", RUN_AND_STAGE, metavar="RUN[/STAGE]"),
        switch("force", "Write it anew though somebody has edited it"),
        WORKSPACE,
    ],
    _card,
)
