"""From a folder in progress to a result: a kill or a full disk at any moment breaks neither.

The record, ``manifest.json``, is written last, when all else is on the disk: a ``.partial`` folder
that has one is finished, and whoever finds it after a kill may put it in its place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from spp_cli.atomic_files import sync
from spp_cli.errors import WorkspaceError
from spp_cli.stage_facts import STAGE_FACTS

MANIFEST, CONFIG = "manifest.json", "config.yaml"
RESULTS = "results.json"  # what an evaluation found
ARCHIVE = "packed"  # the folder in that of a merge with the same model, its zeros left out
# Only a folder in progress has these; whatever else is in it is output.
FINGERPRINT, PROGRESS, RESUME = "fingerprint.json", "progress.json", ".resume"
# Output for people to look at: with times in it, so that no later stage must depend on it.
LOG, LOSS_PLOT, TENSORBOARD = "log.jsonl", "loss.png", "tensorboard"


def partial_of(result: Path) -> Path:
    """Return where the result is made."""
    return result.with_name(f"{result.name}.partial")


def old_of(result: Path) -> Path:
    """Return where the earlier result is while the new one takes its place."""
    return result.with_name(f"{result.name}.old")


def keep_only(folder: Path, output: Collection[str]) -> dict[str, int]:
    """Remove from a folder in progress all but its records and ``output``, relative to it.

    A folder in ``output`` stands for all that is in it. Returns the size in bytes of every file of
    output by its path. Whatever else is there, a killed writer or a library has left.

    Raises:
        WorkspaceError: a file or folder of ``output`` is not there.
    """
    records, wanted = {CONFIG, FINGERPRINT, PROGRESS, RESUME}, {Path(name) for name in output}
    for missing in (name for name in sorted(wanted) if not (folder / name).exists()):
        raise WorkspaceError(f"{folder / missing} is gone. Run the same command again")
    sizes = {}
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        name = path.relative_to(folder)
        if name.parts[0] in records:
            continue
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # it is not empty
                path.rmdir()
        elif wanted.isdisjoint({name, *name.parents}):
            path.unlink()
        else:
            sizes[name.as_posix()] = path.stat().st_size
    return dict(sorted(sizes.items()))


def is_result(name: str) -> bool:
    """Whether this file of output is what later stages read, rather than a record for people."""
    return Path(name).parts[0] not in (LOG, LOSS_PLOT, TENSORBOARD)


def damage(folder: Path, files: Mapping[str, int]) -> str | None:
    """Return what is wrong with the first file that is not there with its size; None if all are."""
    for name, size in files.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"{folder / name} is missing"
        if found != size:
            return f"{folder / name} has {found} bytes instead of {size}"
    return None


def holds_work(partial: Path) -> bool:
    """Whether a folder in progress holds more than the plan: output, or what a resume needs."""
    plan = {CONFIG, FINGERPRINT, PROGRESS}
    return any(path.is_file() and path.name not in plan for path in partial.rglob("*"))


def link_output(source: Path, target: Path, names: Iterable[str]) -> None:
    """Put the files ``names`` of one folder into another: the same bytes, on the disk once."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target / name)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without hard links
            shutil.copyfile(source / name, target / name)


def sync_output(folder: Path, names: Iterable[str]) -> None:
    """Wait until the files ``names``, relative to ``folder``, are on the disk, folders included."""
    folders = {folder}
    for name in names:
        sync(folder / name)
        folders |= {folder / parent for parent in Path(name).parents}
    for path in folders:
        sync(path)


def put_in_place(result: Path) -> None:
    """Replace ``result``, if there is one, by its finished ``.partial``, in one rename.

    A kill in between leaves what ``recover`` can finish.
    """
    partial, old = partial_of(result), old_of(result)
    for name in (RESUME, PROGRESS, FINGERPRINT):
        remove(partial / name)
    sync(partial)
    if os.path.lexists(result):
        remove(old)
        result.rename(old)
    partial.rename(result)
    sync(result.parent)
    sync(result.parent.parent)
    remove(old)


def stage_name(folder: Path) -> str:
    """Return the name of the stage that a folder has, finished or in progress."""
    return folder.name.removesuffix(".partial").removesuffix(".old")


def stage_around(path: Path) -> Path | None:
    """Return the folder of the stage, finished or in progress, that ``path`` is or lies in."""
    resolved = path.resolve()
    for folder in (resolved, *resolved.parents):
        is_made = any((folder / name).is_file() for name in (MANIFEST, FINGERPRINT))
        if is_made and stage_name(folder) in STAGE_FACTS:
            return folder
    return None


def is_half_replaced(result: Path) -> bool:
    """Whether a kill left the result finished but not in its place, or an earlier one behind."""
    return any(map(os.path.lexists, (partial_of(result) / MANIFEST, old_of(result))))


def recover(result: Path) -> None:
    """End what a killed ``put_in_place`` began."""
    if os.path.lexists(partial_of(result) / MANIFEST):
        put_in_place(result)
    elif not os.path.lexists(result):
        old_of(result).rename(result)
    remove(old_of(result))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
