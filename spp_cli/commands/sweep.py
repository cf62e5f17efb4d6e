"""spp sweep: many runs from one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spp_cli import processes
from spp_cli.commands.command import Command, Given, asked, flag_parameter
from spp_cli.commands.parameters import SET, argument, option, switch
from spp_cli.comparison import mark, rows
from spp_cli.errors import ConfigError
from spp_cli.flags import FLAGS
from spp_cli.invocation import default_workspace
from spp_cli.progress import Reporter
from spp_cli.reporting.answer import Answer
from spp_cli.reporting.comparison_table import comparison
from spp_cli.reporting.tables import table
from spp_cli.workspace import STAGES, Run, Workspace

__all__ = ["SWEEP"]


def _sweep(given: Given, reporter: Reporter) -> Answer:
    if processes.count() > 1:
        raise ConfigError(
            "sweep starts processes by itself. Start it without accelerate launch; --jobs says "
            "how many run at once"
        )
    # Not above: the pipeline behind them imports torch, and help shows no live table.
    from spp_cli.reporting.point_table import points_shown
    from spp_cli.sweeps.jobs import check_devices, visible_devices
    from spp_cli.sweeps.outlook import outlook
    from spp_cli.sweeps.running import run_points
    from spp_cli.sweeps.sweep import read_sweep

    sweep = read_sweep(given["file"], asked(FLAGS["sweep"], given))
    devices = visible_devices() if any(p.config.model.device != "cpu" for p in sweep.points) else []
    check_devices(sweep.points, devices)
    document: dict[str, Any] = {"sweep": sweep.name, "workspace": sweep.workspace}
    planned = outlook(sweep)
    if given["dry_run"]:
        return Answer({**document, "points": planned}, _outlook_table(planned))
    with points_shown(reporter) as show:
        record = run_points(sweep, show, jobs=given["jobs"] or len(devices) or 1, devices=devices)
    workspace = Workspace(sweep.workspace)
    found = _last_models([workspace.run(point.name) for point in sweep.points])
    document["points"] = [
        {"point": name, **vars(outcome)} for name, outcome in record.outcomes.items()
    ]
    text = comparison(found, None, "text") if found else "no point has an evaluation"
    where = "" if sweep.workspace == default_workspace() else f" --workspace {sweep.workspace}"
    text += f"\n\nAs a page: spp report --sweep {sweep.name} --no-samples{where}"
    failed = record.failed()
    lines = [f"{name}: {error}" for name, error in failed.items()]
    summary = (
        f"{len(failed)} of {len(sweep.points)} points failed; the same command tries them again"
    )
    return Answer(document, text, "\n".join([*lines, summary]) if failed else "")


def _last_models(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the rows of a comparison: the dense model, and of each run what it ends in."""
    found = rows(runs)
    last = {row["run"]: row for row in found if row["run"]}  # the later stage stands later
    kept = [row for row in found if row["run"] is None or row is last[row["run"]]]
    mark(kept)
    return kept


def _outlook_table(points: Sequence[Mapping[str, Any]]) -> str:
    """Return one line a point: what would be done about each stage; – is not asked for."""
    lines = [[row["point"], *(row["stages"].get(stage, "–") for stage in STAGES)] for row in points]
    return f"{table(['point', *STAGES], lines)}\n\n{len(points)} points"


SWEEP = Command(
    [
        argument("file", "YAML file with the points", metavar="SWEEP.yaml"),
        switch("dry_run", "Check all points, show what would be done, and stop", "Run"),
        option(
            "jobs",
            "So many points at once; default: one for each GPU, or one",
            metavar="INTEGER",
            panel="Run",
            kind=int,
            min=1,
        ),
        *map(flag_parameter, FLAGS["sweep"]),
        SET,
    ],
    _sweep,
)
