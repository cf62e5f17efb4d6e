"""Which checkpoint training goes on from: the newest that is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spp_cli import processes
from spp_cli.errors import SppError, WorkspaceError
from spp_cli.progress import Reporter
from spp_cli.reading import read_json

__all__ = ["damage_named", "mark_complete", "newest_checkpoint"]

_COMPLETE = "complete.json"  # written last: how many processes made it, and the size of every file


def mark_complete(checkpoint: Path) -> None:
    """Put on record that every file of the checkpoint is there."""
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    record = {"processes": processes.count(), "files": sizes}
    (checkpoint / _COMPLETE).write_text(json.dumps(record))


@contextmanager
def damage_named(checkpoint: str | None) -> Iterator[None]:
    """Turn whatever goes wrong with the content of a checkpoint into one line that names it.

    Raises:
        WorkspaceError: something does.
    """
    try:
        yield
    except (SppError, MemoryError):
        raise
    except Exception as error:  # pickles of others: torch, numpy and Python fail in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise WorkspaceError(
            f"{checkpoint} is damaged: {reason}. Remove this folder to resume from the checkpoint "
            "before it, or start again with --force"
        ) from error


def newest_checkpoint(folder: Path, reporter: Reporter) -> Path | None:
    """Return the newest whole checkpoint below ``folder``; None if there is none.

    A checkpoint that a kill left unfinished is removed, with a word about it.

    Raises:
        WorkspaceError: another number of processes made it, whose steps had other rows.
    """
    found = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*")}
    for step in sorted(found, reverse=True):
        if record := _record_of_whole(found[step]):
            if record["processes"] != processes.count():
                raise WorkspaceError(
                    f"{found[step]} was made by {record['processes']} processes, and there are "
                    f"{processes.count()}: start as many, or anew with --force"
                )
            reporter.say(f"going on from step {step}")
            return found[step]
        reporter.warn(f"the checkpoint of step {step} is unfinished; it is left out")
        shutil.rmtree(found[step])
    return None


def _record_of_whole(checkpoint: Path) -> dict[str, Any] | None:
    """Return the record of a checkpoint; None if it has none, or a file is not as on record."""
    try:
        record: dict[str, Any] = read_json(checkpoint / _COMPLETE)
        for name, size in record["files"].items():
            if (checkpoint / name).stat().st_size != size:
                return None
        return record if "processes" in record else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
