"""Which files of a folder are data: not what is said about them, nor what cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from spp_cli.data.kinds import kind_of
from spp_cli.data.streams import readable
from spp_cli.errors import DataError
from spp_cli.progress import Reporter
from spp_cli.reading import read_json

__all__ = ["NO_TEXT", "Found", "files_of", "find_files", "is_saved", "say_passed_over"]

# Said about data, or for those who look after it; never data themselves.
_ABOUT = (
    "readme*", "license*", "licence*", "copying*", "notice*", "changelog*", "citation*",
    "contributing*", "code_of_conduct*", "dataset_card*", "datasheet*", "requirements*.txt",
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json",
)  # fmt: skip
_TEXTS_AMONG_ROWS = (".txt", ".text")  # any other text beside rows is about them, or reads them
_STATE, _SPLITS = "state.json", "dataset_dict.json"  # of a saved data set, and of one with splits
NO_TEXT = "no text"  # why a binary file is passed over
_SHOWN = 4  # names in a line about what was passed over


@dataclass(frozen=True)
class Found:
    """The files of a source in order, and those passed over: by name, with the reason."""

    files: Sequence[Path]
    passed_over: dict[str, str]

    def __str__(self) -> str:
        """Say what was passed over: "README.md (about the data), a.png (binary) and 3 more"."""
        named = [f"{name} ({why})" for name, why in self.passed_over.items()]
        more = f" and {len(named) - _SHOWN:,} more" if len(named) > _SHOWN else ""
        return ", ".join(named[:_SHOWN]) + more


def files_of(path: Path, split: str | None = None, usual: str = "train") -> Sequence[Path]:
    """Return the files that ``find_files`` finds."""
    return find_files(path, split, usual).files


def find_files(path: Path, split: str | None = None, usual: str = "train") -> Found:
    """Return ``path``, or if it is a folder all text and row files below it, sorted by name.

    In a folder, hidden and binary files are passed over, and what tells about data, as a README or
    a licence; where there are rows, also all texts but ``.txt``. Of a data set that ``datasets``
    has saved, the files are those that it names, of ``split``, else the usual or the only one.

    Raises:
        DataError: the folder has no such file, or no such split.
    """
    if not path.is_dir():
        return Found([path], {})
    if is_saved(path):
        return Found(_saved_files(path, split, usual), {})
    below = sorted(path.rglob("*"), key=lambda file: file.relative_to(path).as_posix())
    names = {file: file.relative_to(path) for file in below if file.is_file()}
    kinds, passed_over = {}, {}
    for file, name in names.items():
        if any(part.startswith(".") for part in name.parts):
            continue
        if _is_about_data(file):
            passed_over[str(name)] = "about the data"
        elif (kind := kind_of(file)) == "binary":
            passed_over[str(name)] = NO_TEXT
        else:
            kinds[file] = kind
    if set(kinds.values()) - {"text"}:
        for file in [file for file, kind in kinds.items() if kind == "text"]:
            if file.suffix.lower() not in _TEXTS_AMONG_ROWS:
                passed_over[str(names[file])] = "a text among rows"
                del kinds[file]
    found = Found(list(kinds), passed_over)
    if not kinds:
        besides = f": {found}" if passed_over else ""
        raise DataError(
            f"{path}: no readable file in this folder{besides}. "
            "Put text, JSON, JSON lines, CSV, Parquet or Arrow there"
        )
    return found


def _is_about_data(file: Path) -> bool:
    """Tell whether a file in a folder is about the data there, by its name."""
    return any(fnmatch(file.name.lower(), pattern) for pattern in _ABOUT)


def say_passed_over(path: Path | None, reporter: Reporter) -> None:
    """Tell the reporter in one line which files of a folder are passed over, if any are."""
    is_walked = path is not None and path.is_dir() and not is_saved(path)
    if is_walked and (found := find_files(path)).passed_over:  # type: ignore[arg-type]
        reporter.say(f"{path}: passed over {found}")


def is_saved(path: Path) -> bool:
    """Tell whether a folder holds what ``save_to_disk`` of ``datasets`` writes."""
    return (path / _SPLITS).is_file() or (
        (path / _STATE).is_file() and (path / "dataset_info.json").is_file()
    )


def _saved_files(path: Path, split: str | None, usual: str) -> list[Path]:
    if (path / _SPLITS).is_file():
        splits = [str(name) for name in _read(path / _SPLITS).get("splits", ())]
        is_only = split is None and len(splits) == 1
        chosen = splits[0] if is_only else split or usual
        if chosen not in splits:
            raise DataError(
                f"{path}: a saved data set that has no split {chosen}, only "
                f"{', '.join(splits) or 'none'}. Set split to one of them"
            )
        path = path / chosen
    state = _read(path / _STATE)
    if split and state.get("_split") not in (None, split):
        raise DataError(f"{path}: a saved data set of split {state['_split']}, not {split}")
    try:
        return [path / str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise DataError(f"{path / _STATE}: names no data files. Save the data set again") from None


def _read(path: Path) -> dict[str, Any]:
    with readable(path):
        try:
            found = read_json(path)
        except ValueError:
            found = None
    if not isinstance(found, dict):
        raise DataError(f"{path}: no object of JSON. Save the data set again")
    return found
