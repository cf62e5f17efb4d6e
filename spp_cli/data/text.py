"""Plain text from wherever the configuration says: Python itself, a file, a folder or the hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spp_cli.config import TextConfig, nearest
from spp_cli.data import stdlib
from spp_cli.data.files import Row, files_of, has_rows, read_rows, read_text, string_of
from spp_cli.data.hub import HubSet, hub_rows
from spp_cli.errors import DataError

__all__ = [
    "NAMED",
    "SECTIONS",
    "Texts",
    "Use",
    "find",
    "how_to_supply",
    "hub_set",
    "load_texts",
    "named",
    "refuse_hub_keys",
]

Use = Literal["calibration", "train", "validation", "test"]

NAMED = ("demo", "c4", "wikitext2")
SECTIONS: dict[Use, str] = {
    "calibration": "prune.calibration",
    "train": "finetune.data",
    "validation": "finetune.data",
    "test": "eval.perplexity",
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
    config: TextConfig, use: Use, *, demo: bool, data_folder: str | None = None
) -> Texts:
    """Return the documents that ``config`` names, for calibration, training or evaluation.

    A text file is one document, a JSON line or a row of a hub data set is one each. WikiText-2 is
    one document, its rows joined by blank lines as published. ``demo`` says that the model is the
    embedded one, which decides what "auto" means; ``data_folder`` may hold copies of hub data sets.

    Raises:
        DataError: the source is not there, cannot be reached or read, or holds no text.
    """
    source = named(config.source, use, demo=demo)
    documents = tuple(text for text in _documents(config, source, use, data_folder) if text.strip())
    if not documents:
        raise DataError(f"{SECTIONS[use]}.source: {source} holds no text. Name one that does")
    return Texts(documents, source, _digest(documents))


def named(source: str, use: Use, *, demo: bool) -> str:
    """Return the name of the source that "auto" stands for; any other source as it is."""
    if source != "auto":
        return source
    published = "c4" if use in ("calibration", "train") else "wikitext2"
    return "demo" if demo else published


def _documents(config: TextConfig, source: str, use: Use, data_folder: str | None) -> Iterable[str]:
    section = SECTIONS[use]
    path = None if source in NAMED else find(source, f"{section}.source")
    if path or source in NAMED:
        refuse_hub_keys(config, section)
    if source == "demo":
        part: stdlib.Part = "train" if use == "calibration" else use
        return [text for _, text in stdlib.read_texts(part)]
    if path:
        return _texts_of_path(path, config.field, section)
    rows = hub_rows(
        wanted := hub_set(config, source, use),
        data_folder=data_folder,
        remedy=how_to_supply(wanted.name, section),
    )
    texts = _texts_of_rows(rows, "text" if source in NAMED else config.field, section)
    return ["\n\n".join(texts)] if source == "wikitext2" else texts


def refuse_hub_keys(config: TextConfig, section: str) -> None:
    """Refuse what belongs to a hub data set, where the source is none.

    Raises:
        DataError: the configuration names a subset or a split.
    """
    if config.subset or config.split:
        raise DataError(
            f"{section}: subset and split belong to a hub data set, and source is {config.source}. "
            "Remove them"
        )


def hub_set(config: TextConfig, source: str, use: Use) -> HubSet:
    """Return the part of a hub data set that ``source`` names, c4 and wikitext2 as published."""
    split = "train" if use == "calibration" else use
    if source == "c4":
        return _C4_TRAIN if split == "train" else _C4_HELD_OUT
    if source == "wikitext2":
        return HubSet("Salesforce/wikitext", "wikitext-2-raw-v1", split)
    return HubSet(source, config.subset, config.split or split)


def _texts_of_path(path: Path, field: str, section: str) -> Iterator[str]:
    for file in files_of(path):
        if has_rows(file):
            yield from _texts_of_rows(read_rows(file), field, section)
        else:
            yield read_text(file)


def _texts_of_rows(rows: Iterable[Row], field: str, section: str) -> Iterator[str]:
    return (string_of(row, field, f"Set {section}.field") for row in rows)


def find(source: str, setting: str) -> Path | None:
    """Return the file or folder that ``source`` names, or None if it is the id of a hub data set.

    Raises:
        DataError: it is neither.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) and not has_rows(path)
    if is_hub_id and path.suffix not in (".txt", ".md", ".py", ".gz"):
        return None
    raise DataError(
        f"{setting}: {source}: no such file or folder{nearest(source, NAMED) or '.'} "
        f"Allowed: {', '.join(NAMED)}, a file, a folder, or owner/name of a hub data set"
    )


def how_to_supply(name: str, section: str) -> str:
    """Return the sentence that tells how to have the hub's data set ``name`` read from disk."""
    setting = f"{section}.source to a text or JSON lines file, or a folder of them"
    if section == "eval.perplexity":
        return f"Put a copy at DATA_FOLDER/{name} and set eval.data_folder, or set {setting}"
    return f"Set {setting}"


def _digest(documents: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        content = document.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
