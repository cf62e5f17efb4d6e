"""Plain text from wherever the configuration says: Python itself, a file, a folder or the hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spp_cli.config import TextConfig, nearest
from spp_cli.data import stdlib
from spp_cli.data.files import Row, is_null, read_rows, read_text, string_of
from spp_cli.data.folders import files_of, is_saved, say_passed_over
from spp_cli.data.hub import HubSet, hub_rows
from spp_cli.data.kinds import has_rows, is_named_as_rows
from spp_cli.data.streams import plain_name
from spp_cli.errors import DataError
from spp_cli.progress import Reporter, Silent

__all__ = [
    "NAMED",
    "SECTIONS",
    "SPLITS",
    "Texts",
    "Use",
    "check_sources",
    "find",
    "how_to_supply",
    "hub_set",
    "load_texts",
    "local_files",
    "named",
    "refuse_hub_keys",
    "strings_of",
]

Use = Literal["calibration", "train", "validation", "test"]

NAMED = ("demo", "c4", "wikitext2")
SECTIONS: dict[Use, str] = {
    "calibration": "prune.calibration",
    "train": "finetune.data",
    "validation": "finetune.data",
    "test": "eval.perplexity",
}
SPLITS: dict[Use, str] = {  # which of a data set suits a use
    "calibration": "train",
    "train": "train",
    "validation": "validation",
    "test": "test",
}
# The shards of the published recipes: Wanda and SparseGPT calibrate on the first of training.
_C4_TRAIN = HubSet("allenai/c4", "en", "train", "en/c4-train.00000-of-01024.json.gz")
_C4_HELD_OUT = HubSet("allenai/c4", "en", "validation", "en/c4-validation.00000-of-00008.json.gz")


@dataclass(frozen=True)
class Texts:
    """Documents in a fixed order, none of them blank, and the SHA-256 of them all in hex."""

    documents: tuple[str, ...]
    name: str
    digest: str


def load_texts(
    config: TextConfig,
    use: Use,
    *,
    demo: bool,
    data_folder: str | None = None,
    reporter: Reporter | None = None,
) -> Texts:
    """Return the documents that ``config`` names, for calibration, training or evaluation.

    A text file is one document, a JSON line or a row of a hub data set is one each. WikiText-2 is
    one document, its rows joined by blank lines as published. ``demo`` says that the model is the
    embedded one, which decides what "auto" means; ``data_folder`` may hold copies of hub data sets.
    The reporter is told what was passed over.

    Raises:
        DataError: the source is not there, cannot be reached or read, or holds no text.
    """
    source = named(config.source, use, demo=demo)
    found = _documents(config, source, use, data_folder, reporter or Silent())
    documents = tuple(text for text in found if text.strip())
    if not documents:
        raise DataError(f"{SECTIONS[use]}.source: {source} holds no text. Name one that does")
    return Texts(documents, source, _digest(documents))


def named(source: str, use: Use, *, demo: bool) -> str:
    """Return the name of the source that "auto" stands for; any other source as it is."""
    if source != "auto":
        return source
    published = "c4" if use in ("calibration", "train") else "wikitext2"
    return "demo" if demo else published


def _documents(
    config: TextConfig, source: str, use: Use, data_folder: str | None, reporter: Reporter
) -> Iterable[str]:
    section = SECTIONS[use]
    path = None if source in NAMED else find(source, f"{section}.source")
    if path or source in NAMED:
        refuse_hub_keys(config, section)
    if source == "demo":
        part: stdlib.Part = "train" if use == "calibration" else use
        return [text for _, text in stdlib.read_texts(part)]
    if path:
        say_passed_over(path, reporter)
        files = local_files(config, path, use)
        return strings_of(_rows_of_files(files, config.field), config.field, section, reporter)
    rows = hub_rows(
        wanted := hub_set(config, source, use),
        data_folder=data_folder,
        remedy=how_to_supply(wanted.name, section),
    )
    texts = strings_of(rows, "text" if source in NAMED else config.field, section, reporter)
    return ["\n\n".join(texts)] if source == "wikitext2" else texts


def refuse_hub_keys(config: TextConfig, section: str) -> None:
    """Refuse what belongs to a hub data set, where the source is none.

    A data set that was saved with ``datasets`` may have splits, too.

    Raises:
        DataError: the configuration names a subset or a split.
    """
    may_have_splits = isinstance(config.source, str) and is_saved(Path(config.source).expanduser())
    if config.subset or (config.split and not may_have_splits):
        raise DataError(
            f"{section}: subset and split belong to a hub data set, and source is {config.source}. "
            "Remove them"
        )


def hub_set(config: TextConfig, source: str, use: Use) -> HubSet:
    """Return the part of a hub data set that ``source`` names, c4 and wikitext2 as published."""
    split = SPLITS[use]
    if source == "c4":
        return _C4_TRAIN if split == "train" else _C4_HELD_OUT
    if source == "wikitext2":
        return HubSet("Salesforce/wikitext", "wikitext-2-raw-v1", split)
    return HubSet(source, config.subset, config.split or split)


def local_files(config: TextConfig, path: Path, use: Use) -> Sequence[Path]:
    """Return the files of a source on this machine, of a saved data set those of one split."""
    return files_of(path, config.split, SPLITS[use])


def _rows_of_files(files: Sequence[Path], field: str) -> Iterator[Row]:
    for file in files:
        if has_rows(file):
            yield from read_rows(file, [field])
        else:
            yield Row(str(file), {field: read_text(file)})


def strings_of(rows: Iterable[Row], field: str, section: str, reporter: Reporter) -> Iterator[str]:
    """Yield the text of each row under the key ``field``; ``section`` is where that is set.

    Rows with null there are passed over, and the reporter is told how many they were.

    Raises:
        DataError: a row has no such key, or something else there.
    """
    nulls, first = 0, ""
    for row in rows:
        if is_null(row, field):
            nulls, first = nulls + 1, first or row.place
        else:
            yield string_of(row, field, f"Set {section}.field")
    if nulls:
        more = f"{nulls - 1:,} more row{'s' * (nulls > 2)}"
        others = f", and in {more}" if nulls > 1 else ""
        reporter.say(f"{first}: '{field}' is null{others}; passed over")


def find(source: str, setting: str) -> Path | None:
    """Return the file or folder that ``source`` names, or None if it is the id of a hub data set.

    Raises:
        DataError: it is neither.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source)
    is_named_as_file = is_named_as_rows(path) or plain_name(path) != path.name.lower()
    if is_hub_id and not is_named_as_file and path.suffix not in (".txt", ".md", ".py"):
        return None
    raise DataError(
        f"{setting}: {source}: no such file or folder{nearest(source, NAMED) or '.'} "
        f"Allowed: {', '.join(NAMED)}, a file, a folder, or owner/name of a hub data set"
    )


def check_sources(sources: str | Iterable[str], setting: str) -> None:
    """Refuse, without a look inside, sources of text or rows that are nowhere.

    Raises:
        DataError: one is no data set, and there is no such file or folder.
    """
    for source in [sources] if isinstance(sources, str) else sources:
        if source not in (*NAMED, "auto"):
            find(source, setting)


def how_to_supply(name: str, section: str) -> str:
    """Return the sentence that tells how to have the hub's data set ``name`` read from disk."""
    setting = f"{section}.source to a file of text or rows, or a folder of them"
    if section == "eval.perplexity":
        return f"Put a copy at DATA_FOLDER/{name} and set eval.data_folder, or set {setting}"
    return f"Set {setting}"


def _digest(documents: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        content = document.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
