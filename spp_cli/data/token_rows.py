"""Token rows on disk: written one after the other, mapped into memory, never held as lists."""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from spp_cli.data.prompts import IGNORED

__all__ = ["Account", "RowWriter", "Rows", "digest_of", "listed"]

_SHOWN = 8  # keys that a line names


@dataclass(frozen=True)
class Account:
    """What became of the rows of a source: how many were looked at, cut, and left out, by reason.

    ``form`` is the format they were read in. ``unread`` says of each key of which nothing is made
    how many rows have it.
    """

    source: str
    form: str
    read: int
    truncated: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    unread: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """Say it in brackets, as in " (3 cut; left out: 2 empty)"; nothing if all is well."""
        parts = [f"{self.truncated:,} cut"] * bool(self.truncated)
        if self.skipped:
            reasons = (f"{count:,} {reason}" for reason, count in self.skipped.items())
            parts.append(f"left out: {', '.join(reasons)}")
        if self.unread:
            parts.append(f"keys not used: {listed(self.unread)}")
        return f" ({'; '.join(parts)})" if parts else ""


def listed(keys: Mapping[str, int]) -> str:
    """Return keys with the number of rows that have them, as in "id (36), source (2)"."""
    shown = [f"{key} ({count:,})" for key, count in islice(keys.items(), _SHOWN)]
    if more := len(keys) - len(shown):
        shown.append(f"{more} more")
    return ", ".join(shown)


@dataclass(frozen=True, eq=False)
class Rows:
    """Token ids of rows end to end, which of them carry loss, and where each row begins.

    ``tokens`` is (tokens,) in int32, ``trained`` (tokens,) in bool, ``starts`` (rows + 1,) in
    int64, all of them parts of files. ``digest`` is a SHA-256 in hex over the three.
    """

    tokens: np.ndarray
    trained: np.ndarray
    starts: np.ndarray
    account: Account
    digest: str

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Return ``input_ids`` and ``labels`` of one row; a label of -100 has no loss."""
        index = range(len(self))[index]
        begin, end = self.starts[index : index + 2]
        ids = self.tokens[begin:end]
        labels = np.where(self.trained[begin:end], ids, IGNORED)
        return {"input_ids": ids.tolist(), "labels": labels.tolist()}

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each row (rows,)."""
        return np.diff(self.starts)

    def described(self) -> dict[str, Any]:
        """Return what there is to say of the rows, for the manifest."""
        return {
            "source": self.account.source,
            "format": self.account.form,
            "rows": len(self),
            "tokens": len(self.tokens),
            "trained_tokens": int(self.trained.sum()),
            "read": self.account.read,
            "truncated": self.account.truncated,
            "skipped": dict(self.account.skipped),
            "unread_keys": dict(self.account.unread),
            "digest": self.digest,
        }


class RowWriter:
    """Takes rows one by one into unnamed files, which go with the process, killed or not.

    They lie in the folder ``scratch``, by default the system's temporary one.
    """

    def __init__(self, scratch: Path | None = None) -> None:
        self._tokens, self._trained = _unnamed(scratch), _unnamed(scratch)
        self._starts = array("q", [0])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, ids: Sequence[int], labels: Sequence[int]) -> None:
        """Write a row at the end."""
        self._tokens.write(np.asarray(ids, np.int32).tobytes())
        self._trained.write((np.asarray(labels) != IGNORED).tobytes())
        self._starts.append(self._starts[-1] + len(ids))

    def rows(self, account: Account) -> Rows:
        """Return the rows that were added, at least one; there can be no more."""
        size = self._starts[-1]
        tokens, trained = _mapped(self._tokens, np.int32, size), _mapped(self._trained, bool, size)
        starts = np.frombuffer(self._starts, np.int64)
        return Rows(tokens, trained, starts, account, digest_of(tokens, trained, starts))


def _unnamed(folder: Path | None) -> BinaryIO:
    return tempfile.TemporaryFile(dir=folder)


def _mapped(file: BinaryIO, dtype: Any, size: int) -> np.ndarray:
    file.flush()
    with file:  # the map keeps it
        return np.memmap(file, dtype, mode="c", shape=(size,))


def digest_of(tokens: np.ndarray, trained: np.ndarray, starts: np.ndarray) -> str:
    """Return the SHA-256 in hex over rows as ``Rows`` has them; the same on every machine."""
    digest = hashlib.sha256()
    for part, dtype in ((starts, "<i8"), (tokens, "<i4"), (trained, "?")):
        digest.update(np.ascontiguousarray(part, dtype).data)
    return digest.hexdigest()
