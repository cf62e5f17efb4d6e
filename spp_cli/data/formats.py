"""Which format a source is in: plain text, or rows whose keys tell one from the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from spp_cli.config import TextConfig
from spp_cli.data.examples import RowFormat
from spp_cli.data.files import Row, read_rows
from spp_cli.data.folders import is_saved
from spp_cli.data.hub import HubSet, hub_rows, hub_table
from spp_cli.data.kinds import has_rows
from spp_cli.data.tables import joined, rows_by_number, texts_by_number
from spp_cli.data.text import (
    NAMED,
    SECTIONS,
    SPLITS,
    Use,
    how_to_supply,
    local_files,
    refuse_hub_keys,
)
from spp_cli.errors import DataError

__all__ = [
    "Format",
    "format_of",
    "hub_set",
    "is_in_hub_layout",
    "is_plain_text",
    "keys_of",
    "rows_of",
    "table_of",
]

Format = RowFormat | Literal["text"]


def is_plain_text(
    config: TextConfig, path: Path | None, form: Format | Literal["auto"], use: Use
) -> bool:
    """Whether a source has no rows: a named one, or text files alone. ``path`` is None on the hub.

    Raises:
        DataError: it has none, and ``form`` asks for what only rows can be.
    """
    source = config.source
    is_plain = source in NAMED or (
        path is not None and not any(map(has_rows, local_files(config, path, use)))
    )
    if is_plain and form not in ("auto", "text"):
        raise DataError(
            f"{SECTIONS[use]}: {source} is plain text, and format is {form}. "
            "Set format to text, or name a file of rows: JSON, JSON lines, CSV, Parquet or Arrow"
        )
    return is_plain


def rows_of(config: TextConfig, path: Path | None, use: Use) -> Iterator[Row]:
    """Return the rows of the row files at ``path``, or of the hub data set ``config.source``.

    Raises:
        DataError: they cannot be had, or a file is given the keys of a hub data set.
    """
    if path is None:
        wanted = hub_set(config, use)
        remedy = how_to_supply(wanted.name, SECTIONS[use])
        return hub_rows(wanted, data_folder=None, remedy=remedy)
    refuse_hub_keys(config, SECTIONS[use])
    files = local_files(config, path, use)
    return chain.from_iterable(read_rows(file) for file in files if has_rows(file))


def table_of(
    config: TextConfig, path: Path | None, use: Use, *, with_texts: bool, scratch: Path | None
) -> Sequence[Row]:
    """Return what ``rows_of`` does, by number, and ``with_texts`` each text file as a row too.

    A folder for which a subset or a split is named is a data set in the hub's layout. ``scratch``
    is where files are unpacked that must be, by default the system's temporary folder.

    Raises:
        DataError: as ``rows_of``.
    """
    if path is None or is_in_hub_layout(config, path):
        wanted = hub_set(config, use)
        return hub_table(wanted, folder=path, remedy=how_to_supply(wanted.name, SECTIONS[use]))
    refuse_hub_keys(config, SECTIONS[use])
    tables = [
        rows_by_number(file, scratch) if has_rows(file) else texts_by_number([file], config.field)
        for file in local_files(config, path, use)
        if with_texts or has_rows(file)
    ]
    return joined(tables)


def is_in_hub_layout(config: TextConfig, path: Path) -> bool:
    """Whether a folder is to be read as ``datasets`` reads a data set."""
    return path.is_dir() and bool(config.subset or config.split) and not is_saved(path)


def hub_set(config: TextConfig, use: Use) -> HubSet:
    """Return the split of a hub data set that ``config`` names, or that suits the use."""
    return HubSet(config.source, config.subset, config.split or SPLITS[use])


def keys_of(row: Row) -> set[str]:
    """Return the keys of a row; none if it is no object."""
    return set(row.value) if isinstance(row.value, dict) else set()


def format_of(keys: set[str]) -> RowFormat | None:
    """Return what rows with these keys are, if not text."""
    if {"messages", "conversations"} & keys:
        is_ranking = "chosen" in keys and "prompt" not in keys
        return "preference" if is_ranking else "chat"
    if {"instruction", "output"} <= keys:
        return "alpaca"
    if "chosen" in keys and {"prompt", "rejected"} & keys:
        return "preference"
    return "completion" if {"prompt", "completion"} <= keys else None
