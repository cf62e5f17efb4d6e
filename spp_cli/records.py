"""What was measured once and is kept, with a digest of its own: damaged, it is measured again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from spp_cli.fingerprint import as_json, disk_errors, sha256, write_text
from spp_cli.reading import read_json

__all__ = ["read_record", "write_record"]


def write_record(path: Path, value: Any) -> None:
    """Keep ``value``, of JSON, at ``path``; its folder is made if need be.

    Raises:
        WorkspaceError: the disk is full, or cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    text = as_json(value)
    write_text(path, f'{{"sha256": "{sha256(text)}", "value": {text}}}\n')


def read_record(path: Path, warn: Callable[[str], None]) -> Any:
    """Return what ``write_record`` has kept at ``path``; None if nothing is there.

    What is there and is not as it was written counts as nothing, which ``warn`` is given in a line.
    """
    try:
        record = read_json(path)
        if sha256(as_json(record["value"])) == record["sha256"]:
            return record["value"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    warn(f"{path} is damaged, and measured again")
    return None
