"""The parameters of commands: named here as help shows them, and read by Typer.

Nothing but Typer is imported: the list of all commands is shown without the rest.
"""

from __future__ import annotations

from inspect import Parameter
from typing import Any

import typer

__all__ = [
    "CONFIG", "FORCE", "SET", "SWEEP_NAME", "WORKSPACE",
    "argument", "count", "option", "parameter", "switch", "with_default",
]  # fmt: skip


def argument(name: str, text: str, *, metavar: str = "", kind: Any = str) -> Parameter:
    """Return a positional parameter; without ``None`` in its ``kind`` it must be given."""
    needed = kind in (str, list[str])
    taken = typer.Argument(
        ... if needed else None, metavar=metavar or name.upper(), help=text, show_default=False
    )
    return parameter(name, kind, taken)


def option(
    name: str, text: str, *, metavar: str = "TEXT", panel: str | None = None, kind: Any = str,
    default: Any = None, **limits: Any,
) -> Parameter:  # fmt: skip
    """Return ``--name VALUE``; None if it is not given, or ``default``."""
    taken = typer.Option(
        default,
        f"--{name.replace('_', '-')}",
        help=text,
        metavar=metavar,
        show_default=False,
        rich_help_panel=panel,
        **limits,
    )
    return parameter(name, kind if default is not None else kind | None, taken)


def count(name: str, text: str, panel: str | None = None, *, default: int = 0) -> Parameter:
    """Return ``--name INTEGER``; 0 if it is not given, or ``default``, where 0 is none."""
    if default:
        text = with_default(text, default)
    return option(
        name, text, metavar="INTEGER", panel=panel, kind=int, default=default, min=min(default, 1)
    )


def with_default(text: str, default: object) -> str:
    """Return the help of an option with the default it has."""
    return rf"{text} [dim]\[default: {default}][/dim]"


def switch(name: str, text: str, panel: str | None = None) -> Parameter:
    """Return ``--name``, which takes no value: True if it is given."""
    taken = typer.Option(
        False, f"--{name.replace('_', '-')}", help=text, metavar="", rich_help_panel=panel
    )
    return parameter(name, bool, taken)


def parameter(name: str, kind: Any, default: Any) -> Parameter:
    """Return the parameter ``name`` of type ``kind``; ``default`` is Typer's description of it."""
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


CONFIG = argument("config", "YAML file; flags override it", metavar="CONFIG.yaml", kind=str | None)
SET = parameter(
    "assignments",
    list[str] | None,
    typer.Option(
        None,
        "--set",
        metavar="KEY=VALUE",
        help="Set any key, e.g. prune.calibration.seed=1; may be given more than once",
        show_default=False,
        rich_help_panel="Run",
    ),
)
FORCE = switch("force", "Make it anew, whatever is there", "Run")
SWEEP_NAME = option("sweep", "All runs of this sweep, instead of their names", metavar="NAME")
WORKSPACE = option("workspace", "Folder of all runs; default: $SPP_WORKSPACE, or ./workspace")
