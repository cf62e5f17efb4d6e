"""The command line: each command of the table becomes one of Typer's, with the output options."""

from __future__ import annotations

import importlib
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from spp_cli import __version__
from spp_cli.commands import COMMANDS, GROUPS
from spp_cli.commands.parameters import switch

if TYPE_CHECKING:
    from spp_cli.commands.command import Command, Given

__all__ = ["app"]

_HOW = (
    switch("json", "Print one JSON document on stdout, all else on stderr", "Output"),
    switch("quiet", "Show only warnings, errors and the result", "Output"),
    switch("debug", "Show the traceback of an error, and what libraries say", "Output"),
)
_MARKUP: Any = "rich"  # in the texts of help


class _Listed(TyperCommand):
    """A command as far as a list of them needs it; the rest is imported when it is called."""

    def __init__(self, name: str, place: str, text: str) -> None:
        super().__init__(name.split()[-1], help=text, rich_markup_mode=_MARKUP)
        self._place = place

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        module, _, name = self._place.partition(":")
        command = getattr(importlib.import_module(f"spp_cli.commands.{module}"), name)
        alone = typer.Typer(add_completion=False, rich_markup_mode=_MARKUP)
        alone.command(self.name, help=self.help)(_as_typer(command))
        return typer.main.get_command(alone).make_context(info_name, args, parent, **extra)


class _Commands(TyperGroup):
    """All commands of the table; those of two words in groups by the first."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (place, text) in COMMANDS.items():
            first, _, last = name.partition(" ")
            owner = self._group(first) if last else self
            owner.add_command(_Listed(name, place, text))

    def _group(self, name: str) -> TyperGroup:
        if name not in self.commands:
            group = TyperGroup(
                name=name, help=GROUPS[name], no_args_is_help=True, rich_markup_mode=_MARKUP
            )
            self.add_command(group)
        found = self.commands[name]
        assert isinstance(found, TyperGroup)
        return found


app = typer.Typer(
    cls=_Commands,
    name="spp",
    help="Prune a language model, finetune it without losing a single zero, merge, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=_MARKUP,
    context_settings={"help_option_names": ["-h", "--help"]},
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
    from spp_cli.reporting.answer import Manner, give

    before = context.obj or {}
    names = [parameter.name for parameter in _HOW]
    manner = Manner(**{name: given[name] or before.get(name, False) for name in names})
    code = give(manner, lambda reporter: command.work(given, reporter))
    if code:
        raise typer.Exit(code)


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
