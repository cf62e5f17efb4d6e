"""HTML from values: whatever is not markup already is escaped, so no text can become a tag."""

from __future__ import annotations

import html
import re

__all__ = ["Markup", "element", "join"]

_VOID = ("meta", "br")
# What neither HTML nor XML may hold, such as the escape that commands a terminal.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML already, made by ``element`` or drawn."""


def element(name: str, /, *content: str | None, **attributes: str) -> Markup:
    """Return an element; its content and the values of its attributes are escaped, None left out.

    An underscore at the end of an attribute's name is dropped, others become hyphens: ``class_``,
    ``aria_label``.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
    )
    if name in _VOID:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(*content)}</{name}>")


def join(*content: str | None) -> Markup:
    """Return pieces one after the other, those that are not markup escaped, None left out."""
    pieces = (piece for piece in content if piece is not None)
    return Markup("".join(p if isinstance(p, Markup) else _escaped(p) for p in pieces))


def _escaped(text: str) -> str:
    return html.escape(_FORBIDDEN.sub("\ufffd", text), quote=True)
