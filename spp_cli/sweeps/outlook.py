"""What a sweep would do: every point looked at before any of them runs."""

from __future__ import annotations

from typing import Any

from spp_cli.errors import ConfigError, SppError
from spp_cli.plan import changed_settings, plan, stage_actions
from spp_cli.sweeps.record import other_file
from spp_cli.sweeps.sweep import Point, Sweep
from spp_cli.workspace import Workspace

__all__ = ["outlook"]


def outlook(sweep: Sweep) -> list[dict[str, Any]]:
    """Return for each point its ``point``, ``values`` and ``stages``: what is done about each.

    A pruned model that an earlier point makes is "as" in that one. Reads no weights.

    Raises:
        ConfigError: points that would be refused, one line each.
    """
    problems: dict[str, None] = {}
    if other := other_file(Workspace(sweep.workspace), sweep.name, sweep.file):
        problems[
            f"{sweep.file}: the workspace {sweep.workspace} has a sweep of this name, of {other}. "
            "Rename the file, or choose another --workspace"
        ] = None
    first: dict[str, str] = {}
    found = []
    for point in sweep.points:
        key = point.pruned_as()
        if key not in first and (problem := _misfit(point)):
            problems[f"{point.origin}: {point.name}: {problem}"] = None
        problems |= dict.fromkeys(_other_settings(point))
        actions = stage_actions(point.config, point.name)
        stages = {stage: actions[stage]["action"] for stage in point.stages}
        if first.setdefault(key, point.name) != point.name and stages["prune"] == "run":
            stages["prune"] = f"as {first[key]}"
        found.append({"point": point.name, "values": point.values, "stages": stages})
    if problems:
        raise ConfigError(*problems)
    return found


def _misfit(point: Point) -> str:
    """Return why the model cannot be pruned so; "" if it can."""
    try:
        return str(plan(point.config, point.name)["problem"])
    except SppError as error:
        return str(error)


def _other_settings(point: Point) -> list[str]:
    """Return a line for each stage of a run of this name that has other settings."""
    run = Workspace(point.config.workspace).run(point.name)
    made = [stage for stage in point.stages if stage != "eval"]
    changed = {stage: changed_settings(run, stage, point.config) for stage in made}
    return [
        f"{point.origin}: run {point.name} has its {stage} with other settings: "
        f"{'; '.join(map(str, differences))}. Remove the run, or choose another --workspace"
        for stage, differences in changed.items()
        if differences
    ]
