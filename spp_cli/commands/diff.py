"""spp diff: why two runs have other numbers."""

from __future__ import annotations

from spp_cli.commands.command import Command, Given, run_and_stage, workspace_of
from spp_cli.commands.parameters import WORKSPACE, argument, switch
from spp_cli.comparison import MADE_BY
from spp_cli.difference import Side, diff
from spp_cli.progress import Reporter
from spp_cli.reporting.answer import Answer
from spp_cli.reporting.diff_table import diff_table

__all__ = ["DIFF"]

_STAGES = [stage for stage, made_by in MADE_BY.items() if made_by]


def _diff(given: Given, _: Reporter) -> Answer:
    workspace = workspace_of(given)
    sides = [Side(*run_and_stage(workspace, given[key], _STAGES, "stage")) for key in "ab"]
    stage = next((side.stage for side in sides if side.stage), None)  # of one counts for both
    a, b = (Side(side.run, side.stage or stage) for side in sides)
    document = diff(a, b)
    return Answer(document, diff_table(document, layers=given["layers"]))


DIFF = Command(
    [
        argument("a", "A run, or RUN/STAGE: prune, finetune or merge", metavar="RUN_A"),
        argument("b", "Another", metavar="RUN_B"),
        switch("layers", "Show how far the masks agree in every layer, not only by block"),
        WORKSPACE,
    ],
    _diff,
)
