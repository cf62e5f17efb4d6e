"""One command of ``spp``: its parameters, and the work behind it.

A new command is one file here and one line in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import typer

from spp_cli.commands.parameters import parameter, with_default
from spp_cli.config import nearest
from spp_cli.errors import ConfigError
from spp_cli.flags import Flag
from spp_cli.invocation import default_workspace
from spp_cli.progress import Reporter
from spp_cli.reporting.answer import Answer
from spp_cli.settings import Layer, assigned, parse_assignment
from spp_cli.sweeps.record import sweep_runs
from spp_cli.workspace import Run, Workspace

__all__ = [
    "Command", "Given", "asked", "check_word", "chosen_stages", "flag_parameter", "named_runs",
    "run_and_stage", "workspace_of",
]  # fmt: skip

Given = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """A command: ``work`` takes what was given, by the parameters' names, and says what came of it.

    ``work`` imports what needs torch when it runs, so that help does not wait for it.
    """

    parameters: Sequence[Parameter]
    work: Callable[[Given, Reporter], Answer]


def flag_parameter(flag: Flag) -> Parameter:
    """Return the parameter of a flag; None means that it was not given."""
    names = flag.option
    kind: Any = list[str] if flag.is_list else str
    if flag.is_switch:
        names, kind = f"{flag.option}/{flag.option.replace('--', '--no-', 1)}", bool
    taken = typer.Option(
        None,
        names,
        help=with_default(flag.description, flag.default) if flag.default else flag.description,
        metavar="" if flag.is_switch else flag.value,
        show_default=False,
        rich_help_panel=flag.panel,
    )
    return parameter(_key_name(flag), kind | None, taken)


def asked(flags: Sequence[Flag], given: Given) -> Layer:
    """Return the settings on the command line: flags, then --set, which is the stronger."""
    found = ((flag, given[_key_name(flag)]) for flag in flags)
    named = [flag.assignment(value) for flag, value in found if value not in (None, [])]
    return assigned([*named, *map(parse_assignment, given.get("assignments") or [])])


def workspace_of(given: Given) -> Workspace:
    """Return the workspace that ``WORKSPACE`` names."""
    return Workspace(given["workspace"] or default_workspace())


def named_runs(given: Given, workspace: Workspace) -> list[Run]:
    """Return the runs that ``runs`` names, or those of the sweep that ``SWEEP_NAME`` does.

    Raises:
        ConfigError: both are given.
        WorkspaceError: one is not there.
    """
    names = list(dict.fromkeys(given["runs"] or []))
    if given["sweep"] and names:
        raise ConfigError("--sweep names its runs by itself. Leave it or the names of runs out")
    if given["sweep"]:
        return sweep_runs(workspace, given["sweep"])
    return [workspace.existing_run(name) for name in names]


def run_and_stage(
    workspace: Workspace, text: str, stages: Sequence[str], noun: str
) -> tuple[Run, str | None]:
    """Return the run and the stage that RUN or RUN/STAGE names; None if it names no stage.

    ``noun`` says what such a stage has that others have not.

    Raises:
        ConfigError: a stage that is none of ``stages``.
        WorkspaceError: no such run.
    """
    name, slash, stage = text.partition("/")
    if slash and stage not in stages:
        raise ConfigError(
            f"{text} names no {noun} of run {name}; must be one of "
            f"{', '.join(stages)}{nearest(stage, stages)}"
        )
    return workspace.existing_run(name), stage or None


def chosen_stages(given: Given, stages: Collection[str]) -> list[str]:
    """Return what ``--stage`` names, with commas between them; none if it is not given.

    Raises:
        ConfigError: one is none of ``stages``.
    """
    chosen = [stage.strip() for stage in (given["stage"] or "").split(",") if stage.strip()]
    for stage in chosen:
        check_word("--stage", stage, stages)
    return chosen


def check_word(flag: str, word: str, words: Collection[str]) -> None:
    """Refuse a ``word`` that is none of those a flag takes."""
    if word not in words:
        raise ConfigError(
            f"{flag} is {word!r}; must be one of {', '.join(words)}{nearest(word, words)}"
        )


def _key_name(flag: Flag) -> str:
    return flag.key.replace(".", "__")
