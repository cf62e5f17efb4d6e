"""How much each linear is to lose: found, and put into the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spp_cli.allocation.allocation import Allocation
from spp_cli.allocation.budget import weighted_mean, whole_counts
from spp_cli.allocation.dense import DenseModel
from spp_cli.models.decoder import Linear
from spp_cli.sparsity.patterns import Pattern
from spp_cli.stages.known import measured

__all__ = ["Shares", "allocate"]


@dataclass(frozen=True)
class Shares:
    """The ratio that was allocated to each linear by name, and the pattern that comes nearest."""

    ratios: Mapping[str, float]
    patterns: Mapping[str, Pattern]
    blocks: Mapping[str, float]  # the mean ratio of each block, by its path
    name: str
    record: Mapping[str, Any]

    def described(self) -> dict[str, Any]:
        """Return what the manifest says of the allocation; the ratios of layers stand there too."""
        return {"name": self.name, "blocks": dict(self.blocks), **self.record}


def allocate(
    allocation: Allocation,
    linears: Sequence[Linear],
    pattern: Pattern,
    dense: DenseModel,
    folder: Path,
) -> Shares:
    """Return how much each of ``linears`` is to lose, ``pattern.sparsity`` in all.

    What is measured on the dense model is kept in ``folder``.
    """
    found = measured(allocation, linears, dense, folder) if allocation.reads_text else {}
    allocated = allocation.allocate(linears, pattern.sparsity, found)
    patterns: Mapping[str, Pattern] = dict.fromkeys(allocated.ratios, pattern)
    if allocation.name != "uniform":
        dense.reporter.say(f"allocation {allocation.name}: {allocated.summary}")
        shapes = {linear.name: (*linear.weight.shape,) for linear in linears}
        patterns = whole_counts(allocated.ratios, shapes)
    blocks = {
        path: weighted_mean(
            [allocated.ratios[linear.name] for linear in inside],
            [linear.weight.numel() for linear in inside],
        )
        for path, inside in dense.blocks_of(linears).items()
    }
    return Shares(allocated.ratios, patterns, blocks, allocation.name, allocated.record)
