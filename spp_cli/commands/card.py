"""spp card: the model card of a run, written anew."""

from __future__ import annotations

from spp_cli.commands.command import Command, Given, run_and_stage, workspace_of
from spp_cli.commands.parameters import WORKSPACE, argument, switch
from spp_cli.progress import Reporter
from spp_cli.reporting.answer import Answer

__all__ = ["CARD", "RUN_AND_STAGE", "WHOLE_MODELS"]

WHOLE_MODELS = ("merge", "prune")  # the stages that leave one; the first if none is named


def _card(given: Given, _: Reporter) -> Answer:
    from spp_cli.card import write_card  # not above: help has no need of it

    run, named = run_and_stage(workspace_of(given), given["run"], WHOLE_MODELS, "model")
    stage = named or WHOLE_MODELS[0]
    path = write_card(run, stage, force=given["force"])
    return Answer({"run": run.name, "stage": stage, "file": str(path)}, f"model card: {path}")


RUN_AND_STAGE = "A run, or RUN/STAGE: merge (default), prune"
CARD = Command(
    [
        argument("run", RUN_AND_STAGE, metavar="RUN[/STAGE]"),
        switch("force", "Write it anew though somebody has edited it"),
        WORKSPACE,
    ],
    _card,
)
