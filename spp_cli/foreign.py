"""Text that others wrote, made fit for a terminal: names of tensors, keys of rows, lock files."""

from __future__ import annotations

import re

__all__ = ["as_cell", "in_json", "one_line", "printable"]

# What commands a terminal, breaks a line where none may be, turns the order of what is read around,
# or cannot be encoded: half a surrogate pair.
_COMMANDS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNFIT = re.compile(f"[{_COMMANDS}]")
_UNFIT_IN_LINE = re.compile(f"[{_COMMANDS}\n]")
_UNFIT_BUT_COLOURS = re.compile(rf"(?!\x1b\[(?:0|2|32)m){_UNFIT.pattern}")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str, *, coloured: bool = False) -> str:
    r"""Return ``text`` with "\x1b" for an escape, and so on; line ends and tabs stay.

    ``coloured``: the three colours stay that are written here, which command nothing.
    """
    return (_UNFIT_BUT_COLOURS if coloured else _UNFIT).sub(_escaped, text)


def one_line(text: str) -> str:
    r"""Return ``text`` as ``printable`` does, with "\n" for a line end."""
    return _UNFIT_IN_LINE.sub(_escaped, text)


def in_json(text: str) -> str:
    r"""Return JSON that says the same and is printable: "\u009b" for what it may hold as it is."""
    return _UNFIT.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def as_cell(text: str) -> str:
    """Return ``text`` so that a spreadsheet takes it for text, not for a formula to work out."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
