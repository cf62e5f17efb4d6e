"""The command line: each command of the table becomes one of Typer's, with the output options."""

from __future__ import annotations

from functools import cache
from inspect import Parameter, Signature
from typing import Any

import typer

from spp_cli import __version__
from spp_cli.commands import COMMANDS, GROUPS
from spp_cli.commands.command import Command, Given, switch
from spp_cli.reporting.answer import Manner, give

__all__ = ["app"]

app = typer.Typer(
    name="spp",
    help="Prune a language model, finetune it without losing a single zero, merge, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_HOW = (
    switch("json", "Print one JSON document on stdout, all else on stderr", "Output"),
    switch("quiet", "Show only warnings, errors and the result", "Output"),
    switch("debug", "Show the traceback of an error, and what libraries say", "Output"),
)


def _as_typer(command: Command) -> Any:
    """Return a function whose signature Typer can read; it does the command's work."""

    def body(**given: Any) -> None:
        _finish(command, given.pop("context"), given)

    context = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
    signature = Signature([context, *command.parameters, *_HOW])
    body.__signature__ = signature  # type: ignore[attr-defined]
    body.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return body


def _finish(command: Command, context: typer.Context, given: Given) -> None:
    """Do a command's work; the output options may stand before the command or after it."""
    before = context.obj or {}
    names = [parameter.name for parameter in _HOW]
    manner = Manner(**{name: given[name] or before.get(name, False) for name in names})
    code = give(manner, lambda reporter: command.work(given, reporter))
    if code:
        raise typer.Exit(code)


@cache
def _group(name: str) -> typer.Typer:
    """Return what the commands of two words that begin with ``name`` belong to."""
    group = typer.Typer(help=GROUPS[name], no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


for _command in COMMANDS:
    *_first, _last = _command.name.split()
    _owner = _group(_first[0]) if _first else app
    _owner.command(_last, help=_command.help)(_as_typer(_command))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spp {__version__}")
        raise typer.Exit


_JSON, _QUIET, _DEBUG = (parameter.default for parameter in _HOW)


@app.callback()
def _main(
    context: typer.Context,
    json: bool = _JSON,
    quiet: bool = _QUIET,
    debug: bool = _DEBUG,
    version: bool = typer.Option(
        False,
        "--version",
        help="Show the version",
        metavar="",
        is_eager=True,
        callback=_show_version,
    ),
) -> None:
    context.obj = {"json": json, "quiet": quiet, "debug": debug}
