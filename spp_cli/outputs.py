"""Where a command may write what it is asked for: decided here for all commands.

A file that is there is replaced only if it is of the kind that the command writes. What a stage
has made is its own, and nothing else is written among it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from spp_cli.errors import ConfigError
from spp_cli.fingerprint import disk_errors
from spp_cli.publishing import stage_around, stage_name

__all__ = ["check_output", "check_output_folder"]

_SEEN = 1 << 16  # bytes from the beginning of a file, by which its kind is known


def check_output(
    path: str | Path,
    flag: str,
    noun: str,
    is_ours: Callable[[bytes], bool],
    suffixes: Collection[str] = (),
) -> Path:
    """Return the path of a file that may be written there.

    ``noun`` is what the command writes, "a report"; ``is_ours`` tells by its beginning whether a
    file is one; ``suffixes`` are what its name may end in, anything if there are none.

    Raises:
        ConfigError: a folder, a file that is something else or belongs to a stage, or a suffix of
            another kind of file.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        name = f"{noun.split()[-1]}{next(iter(suffixes), '')}"
        raise ConfigError(f"{flag} is {path}, a folder. Name a file in it: {file / name}")
    if suffixes and file.suffix.lower() not in suffixes:
        allowed = ", ".join(filter(None, suffixes))
        raise ConfigError(f"{flag} is {path}; {noun} ends in one of {allowed}")
    _check_place(file, path, flag)
    if file.exists():
        beginning = b""
        if file.is_file():
            with disk_errors(file, "read"), file.open("rb") as stream:
                beginning = stream.read(_SEEN)
        if not is_ours(beginning):
            raise ConfigError(
                f"{flag} is {path}, which is there and is not {noun} of spp. "
                "Choose another name, or move it away"
            )
    return file


def check_output_folder(path: str | Path, flag: str) -> Path:
    """Return the path of a folder that may be made or added to there.

    Raises:
        ConfigError: it is a file, or belongs to a stage.
    """
    folder = Path(path).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{flag} is {path}, which is not a folder. Choose another")
    _check_place(folder, path, flag)
    return folder


def _check_place(path: Path, given: str | Path, flag: str) -> None:
    """Refuse what is a stage's folder, finished or in progress, or lies in one."""
    if stage := stage_around(path):
        name = stage_name(stage)
        raise ConfigError(
            f"{flag} is {given}, in the {name} of run {stage.parent.name}, where only spp {name} "
            "writes. Choose a place outside it"
        )
