"""Training rows in files named by what was asked for: tokenized once, mapped by every run."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from spp_cli.atomic_files import remove_leftovers
from spp_cli.data.instructions import training_rows
from spp_cli.data.pools import Wanted
from spp_cli.data.sources import source_digest
from spp_cli.data.token_rows import Account, Rows, digest_of
from spp_cli.data.token_store import DAMAGE
from spp_cli.fingerprint import canonical_json, disk_errors, sha256
from spp_cli.models.tensor_file import TensorFile, layout_of, write_tensors
from spp_cli.progress import Reporter
from spp_cli.reading import parse_json

__all__ = ["AskedRows", "KeptRows", "RowStore"]

_FORMAT = 2  # raised when the same settings come to mean other rows, or another file
_NAMES = ("train", "validation")
_DTYPES = {"tokens": torch.int32, "trained": torch.bool, "starts": torch.int64}
_ELSEWHERE_OR_NOWHERE = {"source", "validation_source", "sequence_length", "samples", "packing"}


@dataclass(frozen=True)
class AskedRows:
    """What is wanted, and a SHA-256 in hex over the tokenizer's files."""

    wanted: Wanted
    tokenizer_digest: str

    def key(self, digest_cache: Path | None) -> str:
        """Return a SHA-256 in hex that is the same for what asks for the same rows.

        A local source goes by its name and content, one on the hub by its name alone.
        """
        wanted, config = self.wanted, self.wanted.config
        parts = {"train": config.source, "validation": config.validation_source}
        sources = [
            [name, source_digest(name, part, demo=wanted.demo, cache=digest_cache)]  # type: ignore[arg-type]
            for part, name in parts.items()
            if name
        ]
        settings = config.model_dump(mode="json", exclude=_ELSEWHERE_OR_NOWHERE)
        tokenizer = [type(wanted.tokenizer).__name__, self.tokenizer_digest]
        counts = [wanted.samples, wanted.length, wanted.seed]
        return sha256(canonical_json([_FORMAT, sources, wanted.demo, settings, tokenizer, counts]))


@dataclass(frozen=True)
class KeptRows:
    """Rows to train and to validate on, the file that holds them (None: none), if they are new."""

    train: Rows
    validation: Rows
    path: Path | None
    is_new: bool


@dataclass(frozen=True)
class RowStore:
    """The folder of the files; without one, rows are tokenized each time.

    A file has for train and validation the tensors of ``Rows``, and in its metadata their accounts.
    Several processes may use the folder at once.
    """

    folder: Path | None = None
    digest_cache: Path | None = None

    def rows(self, asked: AskedRows, reporter: Reporter) -> KeptRows:
        """Return the rows asked for, from their file or, if there is none, tokenized into it.

        A damaged file is replaced, which the reporter is told.

        Raises:
            DataError: they are not there yet, and cannot be had from their sources.
            WorkspaceError: their file cannot be written.
        """
        if self.folder is None:
            return KeptRows(*training_rows(asked.wanted, reporter), None, is_new=True)
        path = self.folder / f"{asked.key(self.digest_cache)[:32]}.safetensors"
        if found := _read(path, reporter):
            return KeptRows(*found, path, is_new=False)
        with disk_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            made = training_rows(replace(asked.wanted, scratch=self.folder), reporter)
            _write(path, made)
        return KeptRows(*made, path, is_new=True)

    def of_digest(self, part: Literal["train", "validation"], digest: str) -> Rows | None:
        """Return the rows of that digest, if a file of the folder has them as its ``part``."""
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder else ():
            with suppress(*DAMAGE):
                file = TensorFile(path)
                if parse_json(file.metadata[part])["digest"] == digest:
                    return _rows(file, part)
        return None


def _read(path: Path, reporter: Reporter) -> tuple[Rows, Rows] | None:
    """Return the rows of a file; None if it is not there, or is not what it should be."""
    try:
        file = TensorFile(path)
        train, validation = (_rows(file, name) for name in _NAMES)
        return train, validation
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or error
        reporter.warn(f"{path} is damaged, and made anew: {reason}")
        return None


def _rows(file: TensorFile, name: str) -> Rows:
    described = parse_json(file.metadata[name])
    parts = {}
    for part, dtype in _DTYPES.items():
        tensor = f"{name}.{part}"
        (size,) = file.shape(tensor)
        if file.dtype(tensor) != dtype:
            raise ValueError(f"{tensor} is {file.dtype(tensor)}")
        kind = torch.empty(0, dtype=dtype).numpy().dtype
        parts[part] = np.memmap(file.path, kind, mode="c", offset=file.place(tensor), shape=(size,))
    digest = digest_of(**parts)
    if digest != described.pop("digest"):
        raise ValueError("its tokens are not those that were written")
    return Rows(**parts, account=Account(**described), digest=digest)


def _write(path: Path, made: tuple[Rows, Rows]) -> None:
    tensors = {
        f"{name}.{part}": torch.from_numpy(getattr(rows, part))
        for name, rows in zip(_NAMES, made, strict=True)
        for part in _DTYPES
    }
    metadata = {
        name: json.dumps({**asdict(rows.account), "digest": rows.digest})
        for name, rows in zip(_NAMES, made, strict=True)
    }
    layouts = {name: layout_of(tensor) for name, tensor in tensors.items()}
    write_tensors(path, layouts, tensors.__getitem__, metadata)
