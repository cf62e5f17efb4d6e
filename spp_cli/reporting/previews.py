"""Training rows as text, with what is trained on in colour, or in brackets where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from spp_cli.foreign import printable

__all__ = ["has_colour", "rows_preview"]

_GREEN, _DIM, _PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"


def has_colour() -> bool:
    """Whether what the command prints at its end goes to a terminal that may be coloured."""
    # While a command works, sys.stdout is stderr.
    stdout = sys.__stdout__
    return bool(stdout and stdout.isatty() and "NO_COLOR" not in os.environ)


def rows_preview(document: Mapping[str, Any], *, colour: bool) -> str:
    """Return what ``spp finetune --preview`` found, row by row, and a legend above.

    ``document`` has ``source``, ``format``, ``length``, ``packing``, ``left_out`` (rows passed
    over, by reason), ``unread_keys`` (rows by key) and ``rows``, each with ``place``, ``tokens``,
    ``length``, ``trained`` and ``pieces``.
    """
    from spp_cli.data.token_rows import listed

    legend = _marked("trained on", colour)
    lines = [
        f"{document['source']} ({document['format']}), at most {document['length']} tokens a row; "
        f"{legend}, the rest is only read"
    ]
    if document["packing"]:
        lines.append("several such rows share a sequence, and none sees another")
    for number, row in enumerate(document["rows"], start=1):
        lines += ["", _dim(f"── {number}  {_facts(row)}", colour), _text(row, colour)]
        if row["length"] < row["tokens"]:
            lines.append(_dim(f"… cut here: {row['tokens'] - row['length']:,} tokens more", colour))
    if document["left_out"]:
        reasons = (f"{count:,} {reason}" for reason, count in document["left_out"].items())
        lines += ["", f"left out on the way: {', '.join(reasons)}"]
    if document["unread_keys"]:
        lines += ["", f"keys not used: {listed(document['unread_keys'])}"]
    return "\n".join(lines)


def _facts(row: Mapping[str, Any]) -> str:
    return f"{row['place']}: {row['length']:,} tokens, {row['trained']:,} of them trained on"


def _text(row: Mapping[str, Any], colour: bool) -> str:
    shown = (
        _marked(printable(piece["text"]), colour) if piece["trained"] else printable(piece["text"])
        for piece in row["pieces"]
    )
    return "".join(shown)


def _marked(text: str, colour: bool) -> str:
    return f"{_GREEN}{text}{_PLAIN}" if colour else f"⟦{text}⟧"


def _dim(text: str, colour: bool) -> str:
    return f"{_DIM}{text}{_PLAIN}" if colour else text
