"""Calibration tokens: sequences drawn from text, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from spp_cli.config import CalibrationConfig
from spp_cli.data.text import load_texts
from spp_cli.data.tokens import TokenSet, encode, encode_document, stored_tokens, token_set
from spp_cli.data.windows import Windows, windows_of_documents, windows_of_packed
from spp_cli.errors import DataError

__all__ = ["calibration_tokens"]


def calibration_tokens(
    config: CalibrationConfig, tokenizer: Any, length: int, *, demo: bool
) -> TokenSet:
    """Return ``config.samples`` sequences of ``length`` tokens, the same for the same seed.

    Raises:
        DataError: the text cannot be had, or is too short.
    """
    section, samples = "prune.calibration", config.samples
    stored = stored_tokens(config.source, section, length, tokenizer)
    if stored is not None:
        if len(stored) < samples:
            raise DataError(
                f"{config.source}: {len(stored)} sequences, and {section}.samples is {samples}. "
                "Lower it, or store more"
            )
        return token_set(stored[:samples], config.source, "stored")
    texts = load_texts(config, "calibration", demo=demo)
    drawn = _draw(texts.documents, tokenizer, samples=samples, length=length, seed=config.seed)
    if not drawn.rows:
        raise DataError(
            f"{section}.source: {texts.name} has {drawn.tokens} tokens, and {samples} different "
            f"sequences of {length} need at least {length + samples - 1}. "
            f"Lower {section}.samples or sequence_length, or give more text"
        )
    return token_set(torch.tensor(drawn.rows), texts.name, drawn.recipe)


def _draw(
    documents: Sequence[str], tokenizer: Any, *, samples: int, length: int, seed: int
) -> Windows:
    """Draw as published, unless the documents that come up are all too short, or too few."""
    counts = {"samples": samples, "length": length, "seed": seed}
    drawn = windows_of_documents(documents, partial(encode, tokenizer), **counts)
    # With fewer tokens than are asked for, the same few passages would come again and again.
    if drawn.tokens >= samples * length:
        return drawn
    return windows_of_packed(documents, partial(encode_document, tokenizer), **counts)
