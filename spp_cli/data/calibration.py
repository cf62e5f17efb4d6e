"""Calibration tokens: sequences drawn from one source or several, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch

from spp_cli.config import CalibrationConfig, TextConfig
from spp_cli.data.documents import SECTION, Documents, calibration_documents
from spp_cli.data.text import NAMED, find, named
from spp_cli.data.tokens import TokenSet, stored_tokens, token_set
from spp_cli.data.windows import Windows, windows_of_documents, windows_of_packed
from spp_cli.errors import DataError
from spp_cli.progress import Reporter

__all__ = ["calibration_tokens", "divide", "shares"]


def calibration_tokens(
    config: CalibrationConfig,
    tokenizer: Any,
    length: int,
    *,
    demo: bool,
    reporter: Reporter | None = None,
) -> TokenSet:
    """Return ``config.samples`` sequences of ``length`` tokens, the same for the same seed.

    Each of several sources gives its share, drawn as if it were alone; then ``config.seed``
    shuffles the order of all sequences. The reporter is told what was passed over of a source.

    Raises:
        DataError: a text cannot be had, or is too short.
    """
    parts = shares(config, demo=demo)
    drawn = [
        _draw(config, name, samples, tokenizer, length, reporter) for name, samples in parts.items()
    ]
    if len(drawn) == 1:
        return drawn[0]
    together = torch.cat([part.tokens for part in drawn])
    order = random.Random(config.seed).sample(range(len(together)), len(together))
    source = ", ".join(f"{len(part.tokens)} of {part.source}" for part in drawn)
    recipe = " + ".join(dict.fromkeys(part.recipe for part in drawn))
    return token_set(together[order], source, recipe)


def shares(config: CalibrationConfig, *, demo: bool) -> dict[str, int]:
    """Return how many sequences each source gives, in the order of the names.

    Raises:
        DataError: a source gives none.
    """
    weights: dict[str, float] = {}
    given = config.source if isinstance(config.source, dict) else {config.source: 1.0}
    for name, weight in given.items():
        name = named(name, "calibration", demo=demo)
        weights[name] = weights.get(name, 0) + weight
    parts = divide(config.samples, weights)
    for name, samples in parts.items():
        if not samples:
            raise DataError(
                f"{SECTION}.source: {name} has the weight {weights[name]:g} of "
                f"{sum(weights.values()):g}, and gives none of {config.samples} samples. "
                f"Raise its weight, or {SECTION}.samples"
            )
    return parts


def divide(samples: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Divide ``samples`` by weight: whole numbers, and what is left to the largest remainders.

    Equal remainders go by name, and so does the result, whatever the order of the mapping.
    """
    exact = {name: Fraction(repr(weights[name])) for name in sorted(weights)}  # 0.1 is a tenth
    quotas = {name: samples * weight / sum(exact.values()) for name, weight in exact.items()}
    parts = {name: int(quota) for name, quota in quotas.items()}
    by_remainder = sorted(parts, key=lambda name: parts[name] - quotas[name])
    for name in by_remainder[: samples - sum(parts.values())]:
        parts[name] += 1
    return parts


def _draw(
    config: CalibrationConfig,
    source: str,
    samples: int,
    tokenizer: Any,
    length: int,
    reporter: Reporter | None,
) -> TokenSet:
    stored = stored_tokens(source, SECTION, length, tokenizer)
    if stored is not None:
        if len(stored) < samples:
            raise DataError(
                f"{source}: {len(stored)} sequences, and {samples} are wanted of it. "
                f"Lower {SECTION}.samples, or store more"
            )
        return token_set(stored[:samples], source, "stored")
    documents = calibration_documents(_of_one(config, source), config.format, tokenizer, reporter)
    drawn = _windows(documents, samples=samples, length=length, seed=config.seed)
    if not drawn.rows:
        raise DataError(
            f"{SECTION}.source: {documents.name} has {drawn.tokens} tokens, and {samples} "
            f"different sequences of {length} need at least {length + samples - 1}. "
            f"Lower {SECTION}.samples or sequence_length, or give more text"
        )
    return token_set(torch.tensor(drawn.rows), documents.name, drawn.recipe)


def _of_one(config: CalibrationConfig, source: str) -> TextConfig:
    """Return the settings of one source. Of several, subset and split are for the hub data sets."""
    of_hub = {"subset": config.subset, "split": config.split}
    if isinstance(config.source, dict) and any(map(_is_on_hub, config.source)):
        of_hub = of_hub if _is_on_hub(source) else {}
    return TextConfig.model_validate({"source": source, "field": config.field, **of_hub})


def _is_on_hub(source: str) -> bool:
    return source not in (*NAMED, "auto") and find(source, f"{SECTION}.source") is None


def _windows(documents: Documents, *, samples: int, length: int, seed: int) -> Windows:
    """Draw as published, unless the documents that come up are all too short, or too few."""
    counts = {"samples": samples, "length": length, "seed": seed}
    drawn = windows_of_documents(documents.items, documents.encode, **counts)
    if drawn.rows:
        return drawn
    return windows_of_packed(documents.items, documents.encode_whole, **counts)
