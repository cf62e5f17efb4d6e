"""Calibration tokens in files named by what was asked for: drawn once, read by every run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spp_cli.atomic_files import remove_leftovers
from spp_cli.config import CalibrationConfig
from spp_cli.data.calibration import calibration_tokens, shares
from spp_cli.data.sources import source_digest
from spp_cli.data.tokens import TokenSet, token_digest
from spp_cli.fingerprint import FORMAT, canonical_json, disk_errors, sha256
from spp_cli.models.tensor_file import TensorFile, layout_of, write_tensors
from spp_cli.progress import Reporter

__all__ = ["DAMAGE", "Asked", "Kept", "TokenStore"]

# What reading a file may raise that is not what it should be.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Asked:
    """Everything that decides calibration tokens: the settings, the tokenizer, and the length.

    ``tokenizer_digest`` is a SHA-256 in hex over the tokenizer's files; ``demo`` says that the
    model is the embedded one.
    """

    config: CalibrationConfig
    tokenizer: Any
    tokenizer_digest: str
    length: int
    demo: bool

    def key(self, digest_cache: Path | None) -> str:
        """Return a SHA-256 in hex that is the same for what asks for the same tokens.

        A local source goes by its name and content, one on the hub by its name alone: the hub need
        not be reached to know what was asked of it.
        """
        config = self.config
        sources = [
            [name, samples, source_digest(name, "train", demo=self.demo, cache=digest_cache)]
            for name, samples in shares(config, demo=self.demo).items()
        ]
        settings = config.model_dump(include={"subset", "split", "field", "format", "seed"})
        tokenizer = [type(self.tokenizer).__name__, self.tokenizer_digest]
        return sha256(canonical_json([FORMAT, sources, settings, tokenizer, self.length]))


@dataclass(frozen=True)
class Kept:
    """Calibration tokens, the file that holds them (None: none), and if they were drawn now."""

    tokens: TokenSet
    path: Path | None
    is_new: bool


@dataclass(frozen=True)
class TokenStore:
    """The folder of the files; without one, tokens are drawn each time.

    A file has the tensor ``tokens`` (samples, length) in int64, and in its metadata where they come
    from: it can be a calibration source itself. Several processes may use the folder at once.
    """

    folder: Path | None = None
    digest_cache: Path | None = None

    def tokens(self, asked: Asked, reporter: Reporter) -> Kept:
        """Return the tokens asked for, from their file or, if there is none, drawn into it.

        A damaged file is replaced, which the reporter is told.

        Raises:
            DataError: they are not there yet, and their text cannot be had or is too short.
            WorkspaceError: their file cannot be written.
        """
        path = self.folder and self.folder / f"{asked.key(self.digest_cache)[:32]}.safetensors"
        if path is not None and (found := _read(path, asked, reporter)):
            return Kept(found, path, is_new=False)
        drawn = calibration_tokens(
            asked.config, asked.tokenizer, asked.length, demo=asked.demo, reporter=reporter
        )
        if path is not None:
            _write(path, drawn, asked)
        return Kept(drawn, path, is_new=True)

    def of_digest(self, digest: str) -> TokenSet | None:
        """Return the tokens of that digest, if a file of the folder has them."""
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder else ():
            with suppress(*DAMAGE):
                file = TensorFile(path)
                if file.metadata["digest"] == digest:
                    return _tokens(file)
        return None


def _read(path: Path, asked: Asked, reporter: Reporter) -> TokenSet | None:
    """Return the tokens of a file; None if it is not there, or is not what it should be."""
    try:
        found = _tokens(TensorFile(path))
        if tuple(found.tokens.shape) != (asked.config.samples, asked.length):
            raise ValueError(f"tokens is {tuple(found.tokens.shape)}")
        return found
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or error
        reporter.warn(f"{path} is damaged, and drawn anew: {reason}")
        return None


def _tokens(file: TensorFile) -> TokenSet:
    tokens = file.read("tokens")
    if tokens.dtype != torch.int64 or tokens.dim() != 2:
        raise ValueError(f"tokens is {tokens.dtype} {tuple(tokens.shape)}")
    digest = token_digest(tokens.numpy())
    if digest != file.metadata["digest"]:
        raise ValueError("its tokens are not those that were written")
    return TokenSet(tokens, file.metadata["source"], digest, file.metadata["recipe"])


def _write(path: Path, drawn: TokenSet, asked: Asked) -> None:
    metadata = {
        "source": drawn.source,
        "recipe": drawn.recipe,
        "samples": str(asked.config.samples),
        "length": str(asked.length),
        "seed": str(asked.config.seed),
        "tokenizer": asked.tokenizer_digest,
        "digest": drawn.digest,
    }
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        write_tensors(path, {"tokens": layout_of(drawn.tokens)}, lambda _: drawn.tokens, metadata)
