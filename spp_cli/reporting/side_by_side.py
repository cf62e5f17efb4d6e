"""Texts beside each other, in columns where the terminal is wide enough for them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from spp_cli.foreign import printable

__all__ = ["side_by_side", "terminal_width"]

_NARROWEST = 32  # signs of a column that still reads well
_GAP = "   "


def terminal_width() -> int:
    """Return the columns of the terminal that stdout goes to; 80 if it goes elsewhere."""
    return shutil.get_terminal_size().columns


def side_by_side(texts: Mapping[str, str], width: int) -> str:
    """Return the texts under their titles: in columns, or where these would be narrow, in turn."""
    shown = {printable(title): printable(text) for title, text in texts.items()}
    each = (width - len(_GAP) * (len(shown) - 1)) // len(shown)
    if each < _NARROWEST or len(shown) == 1:
        return "\n\n".join(f"── {title}\n{text}" for title, text in shown.items())
    columns = [
        [*_wrapped(title, each), "─" * each, *_wrapped(text, each)] for title, text in shown.items()
    ]
    height = max(map(len, columns))
    rows = zip(*(column + [""] * (height - len(column)) for column in columns), strict=True)
    return "\n".join(_GAP.join(_padded(cell, each) for cell in row).rstrip() for row in rows)


def _wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a text, those that are too long broken between words; indents stay."""
    console = Console(width=width)
    return [
        line
        for paragraph in text.expandtabs(4).split("\n")
        for line in _broken(paragraph, width, console)
    ]


def _broken(line: str, width: int, console: Console) -> list[str]:
    if cell_len(line) <= width:
        return [line]
    return [part.plain for part in Text(line).wrap(console, width, overflow="fold")]


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - cell_len(cell))
