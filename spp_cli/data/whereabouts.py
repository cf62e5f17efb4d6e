"""Where on this machine a data set lies: in a local copy, in the hub's cache, or nowhere yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spp_cli.config import TextConfig
from spp_cli.data.hub import HubSet, place_in_copy, splits_at_hand
from spp_cli.data.text import NAMED, Use, find, hub_set, named
from spp_cli.errors import DataError

__all__ = ["NOWHERE", "State", "Whereabouts", "how_to_get", "lacking", "text_whereabouts"]

NOWHERE = "no copy, nor in the hub's cache"

State = Literal["embedded", "on disk", "copy", "cache", "missing"]


@dataclass(frozen=True)
class Whereabouts:
    """Where the data for one use lie.

    ``state``: embedded in spp or in the task, on disk as the setting names it, a local copy of the
    hub's, in the hub's cache, or missing. ``subsets`` are those needed, with their splits.
    """

    use: str  # a task's name, or the key of the setting: eval.perplexity.source
    data_set: str  # as on the hub, or the file or folder
    state: State
    place: str | None = None  # folder or file, where it is not the cache
    subsets: Sequence[str] = ()
    problem: str = ""  # why it counts as missing
    remedy: str = ""  # what to do about it


def how_to_get(name: str, data_folder: Path | None, file: str | None = None) -> str:
    """Return the command that copies a data set from the hub to where spp looks for it."""
    target = f"{data_folder or 'FOLDER'}/{name}"
    only = f" {file}" if file else ""
    return f"hf download {name}{only} --repo-type dataset --local-dir {target}"


def lacking(wanted: Sequence[str], splits: set[str]) -> str:
    """Return which of the splits ``wanted`` is not there; nothing if all are."""
    missing = [split for split in wanted if split not in splits]
    return f"no split {missing[0]!r}, only {', '.join(sorted(splits))}" if missing else ""


def text_whereabouts(
    config: TextConfig, use: Use, *, demo: bool, data_folder: Path | None
) -> list[Whereabouts]:
    """Return where the text of a setting lies; of a mixture of sources each.

    Calibration reads no copies: what it wants of the hub comes from its cache.

    Raises:
        DataError: a source is no data set, and there is no such file or folder.
    """
    key = "prune.calibration.source" if use == "calibration" else "eval.perplexity.source"
    sources = [config.source] if isinstance(config.source, str) else list(config.source)
    return [
        _one(config.model_copy(update={"source": source}), key, use, demo, data_folder)
        for source in sources
    ]


def _one(
    config: TextConfig, key: str, use: Use, demo: bool, data_folder: Path | None
) -> Whereabouts:
    source = named(config.source, use, demo=demo)
    if source == "demo":
        return Whereabouts(key, source, "embedded")
    if source not in NAMED and (path := find(source, key)):
        return Whereabouts(key, source, "on disk", str(path))
    wanted = hub_set(config, source, use)
    copies = None if use == "calibration" else data_folder
    copy = copies / wanted.name if copies else None
    try:
        if copy and copy.is_dir():
            _require_in_copy(wanted, copy)
            return Whereabouts(key, str(wanted), "copy", str(copy))
        _require_in_cache(wanted)
        return Whereabouts(key, str(wanted), "cache")
    except DataError as error:
        remedy = how_to_get(wanted.name, data_folder, wanted.file)
        if use == "calibration":
            remedy = "spp calibrate where the hub can be reached, or --calibration FILE"
        return Whereabouts(key, str(wanted), "missing", problem=str(error), remedy=remedy)


def _require_in_copy(wanted: HubSet, copy: Path) -> None:
    if wanted.file:
        if not (copy / wanted.file).is_file():
            raise DataError(f"the copy in {copy} lacks {wanted.file}")
        return
    folder, subset = place_in_copy(copy, wanted.subset)
    _require_split(wanted, splits_at_hand(str(folder), subset))


def _require_in_cache(wanted: HubSet) -> None:
    if wanted.file is None:
        try:
            splits = splits_at_hand(wanted.name, wanted.subset)
        except DataError as error:
            raise DataError(NOWHERE) from error
        _require_split(wanted, splits)
        return
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(wanted.name, wanted.file, repo_type="dataset")
    if not isinstance(found, str):
        raise DataError(NOWHERE)


def _require_split(wanted: HubSet, splits: set[str]) -> None:
    if problem := lacking([wanted.split], splits):
        raise DataError(problem)
