"""Which format a source is in: plain text, or rows whose keys tell chats from instructions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from spp_cli.config import TextConfig
from spp_cli.data.files import Row, files_of, has_rows, read_rows
from spp_cli.data.hub import HubSet, hub_rows
from spp_cli.data.text import NAMED, SECTIONS, Use, how_to_supply, refuse_hub_keys
from spp_cli.errors import DataError

__all__ = ["Format", "format_of", "is_plain_text", "keys_of", "rows_of"]

Format = Literal["alpaca", "chat", "text"]


def is_plain_text(source: str, path: Path | None, form: Format | Literal["auto"], use: Use) -> bool:
    """Whether a source has no rows: a named one, or text files alone. ``path`` is None on the hub.

    Raises:
        DataError: it has none, and ``form`` asks for what only rows can be.
    """
    is_plain = source in NAMED or (path is not None and not any(map(has_rows, files_of(path))))
    if is_plain and form not in ("auto", "text"):
        raise DataError(
            f"{SECTIONS[use]}: {source} is plain text, and format is {form}. "
            "Set format to text, or name a JSON, JSON lines or Parquet file"
        )
    return is_plain


def rows_of(config: TextConfig, path: Path | None, use: Use) -> Iterator[Row]:
    """Return the rows of the row files at ``path``, or of the hub data set ``config.source``.

    Raises:
        DataError: they cannot be had, or a file is given the keys of a hub data set.
    """
    if path is None:
        split = "train" if use == "calibration" else use
        wanted = HubSet(config.source, config.subset, config.split or split)
        remedy = how_to_supply(wanted.name, SECTIONS[use])
        return hub_rows(wanted, data_folder=None, remedy=remedy)
    refuse_hub_keys(config, SECTIONS[use])
    return chain.from_iterable(read_rows(file) for file in files_of(path) if has_rows(file))


def keys_of(row: Row) -> set[str]:
    """Return the keys of a row; none if it is no object."""
    return set(row.value) if isinstance(row.value, dict) else set()


def format_of(keys: set[str]) -> Literal["alpaca", "chat"] | None:
    """Return what rows with these keys are, if not text."""
    if "messages" in keys:
        return "chat"
    return "alpaca" if {"instruction", "output"} <= keys else None
