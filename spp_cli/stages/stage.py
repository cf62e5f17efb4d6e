"""What a stage is given and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spp_cli.data.row_store import RowStore
from spp_cli.data.token_store import TokenStore

__all__ = ["Result", "Sources"]


@dataclass(frozen=True)
class Sources:
    """Where a stage reads: the dense model, and the folders of the run's stages that are there."""

    model: Path
    demo: bool  # whether the dense model is the embedded one
    stages: dict[str, Path] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # of "dense" and of each stage
    cache: Path | None = None  # where results of evaluations are remembered
    again: bool = False  # whether what is remembered is to be measured again
    store: TokenStore = field(default_factory=TokenStore)  # where calibration tokens are kept
    statistics: Path | None = None  # where what is known of dense models is kept
    rows: RowStore = field(default_factory=RowStore)  # where tokens of training rows are kept


@dataclass(frozen=True)
class Result:
    """What a stage reports of itself, for the manifest and the terminal.

    ``output`` are the files that it has made, relative to its folder; a folder stands for all that
    is in it. What else lies there is no part of the result.
    """

    metrics: dict[str, Any]
    output: Sequence[str] = ()
    mask_digest: str | None = None
