"""Where a dense model comes from, and on what terms: its place on the hub, and its own card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from spp_cli import yaml12

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
    snapshots, repository = folder.parent.name, folder.parent.parent.name
    if snapshots != "snapshots" or not repository.startswith("models--"):
        return terms
    hub_id = repository.removeprefix("models--").replace("--", "/")
    return {"hub_id": hub_id, "revision": folder.name, **terms}


def front_matter(card: Path) -> dict[str, Any]:
    """Return what stands between the two lines ``---`` a card begins with; {} if nothing does."""
    try:
        begin, _, rest = card.read_text(encoding="utf-8-sig").partition("\n")
        values = yaml12.parse(rest.partition("\n---")[0]) if begin.rstrip() == "---" else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def licence_files(folder: Path) -> list[Path]:
    """Return the files that say on what terms a model is given, in order."""
    found = {path for pattern in LICENCES for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)
