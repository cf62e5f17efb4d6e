"""Where a dense model comes from, and on what terms: its place on the hub, and its own card."""

from __future__ import annotations

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from typing import Any

import yaml

from spp_cli import yaml12
from spp_cli.config import hub_origin

__all__ = ["CARD", "LICENCES", "front_matter", "licence_files", "origin"]

CARD = "README.md"  # the hub shows it as the page of a model
_TERMS = ("license", "license_name", "license_link", "language")
LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")


def origin(folder: Path) -> dict[str, Any]:
    """Return what the card of a model that is made from the one in ``folder`` has to carry on.

    Of a model in the hub's cache there are ``hub_id`` and ``revision``, its commit; and, as its own
    card says, ``license``, ``license_name``, ``license_link`` and ``language``. What is not known
    has no key.
    """
    found = front_matter(folder / CARD)
    terms = {key: found[key] for key in _TERMS if isinstance(found.get(key), str | list)}
    place = hub_origin(folder.as_posix())
    return {"hub_id": place[0], "revision": place[1], **terms} if place else terms


def front_matter(card: Path) -> dict[str, Any]:
    """Return what stands between the two lines ``---`` a card begins with; {} if nothing does."""
    try:
        begin, _, rest = _text(card.read_bytes()).partition("\n")
        values = yaml12.parse(rest.partition("\n---")[0]) if begin.rstrip() == "---" else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _text(content: bytes) -> str:
    """Return a text as UTF-8, or UTF-16 by its mark; what is neither is in an older encoding.

    The keys of a card are ASCII and so are the names of licences: a letter that is taken for
    another harms neither.
    """
    encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n")


def licence_files(folder: Path) -> list[Path]:
    """Return the files that say on what terms a model is given, in order."""
    found = {path for pattern in LICENCES for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)
