"""The text that a run was trained, validated or calibrated on, as the workspace has it still."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from spp_cli.data.token_store import DAMAGE
from spp_cli.publishing import MANIFEST
from spp_cli.reading import read_json
from spp_cli.stages.stage import Sources

__all__ = ["RecordedText", "recorded_text"]


@dataclass(frozen=True)
class RecordedText:
    """Token ids (sequences, length) in int64, and where they come from."""

    tokens: Tensor
    source: str


def recorded_text(
    sources: Sources, kind: Literal["train", "validation"], *, sequences: int, length: int
) -> RecordedText | None:
    """Return sequences of what a finetune has read, spread evenly over it.

    Rows follow each other without a gap. Where they are kept no longer the calibration tokens take
    their place; None: those are gone too. Nothing is downloaded or tokenized.
    """
    ids, source = None, ""
    rows = sources.rows.of_digest(kind, _digest(sources, "finetune", kind))
    drawn = sources.store.of_digest(_digest(sources, "prune", "calibration"))
    if rows is not None:
        ids, source = torch.from_numpy(rows.tokens).long(), rows.account.source
    elif drawn is not None:
        ids, source = drawn.tokens.flatten(), drawn.source
    if ids is None:
        return None
    length = min(length, len(ids))
    count = min(sequences, len(ids) // length)
    starts = torch.linspace(0, len(ids) - length, count).long().tolist()
    return RecordedText(torch.stack([ids[start : start + length] for start in starts]), source)


def _digest(sources: Sources, stage: str, part: str) -> str:
    """Return the digest of a text that the manifest of a stage has on record; empty if none."""
    found: dict[str, Any] = _manifest(sources.stages[stage])
    with suppress(KeyError, TypeError):
        return str(found["metrics"][part]["digest"])
    return ""


def _manifest(folder: Path) -> dict[str, Any]:
    with suppress(*DAMAGE):
        found = read_json(folder / MANIFEST)
        return found if isinstance(found, dict) else {}
    return {}
