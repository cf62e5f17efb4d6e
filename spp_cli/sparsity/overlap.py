"""How much two prunings of a model agree: what their keep masks have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from spp_cli.sparsity.masks import KeepMasks
from spp_cli.sparsity.verify import count_bits

__all__ = ["Overlap", "block_of", "overlap", "overlaps"]


@dataclass(frozen=True)
class Overlap:
    """Two masks of one linear, or of several together: weights, kept by each, kept by both."""

    name: str
    size: int
    kept_a: int
    kept_b: int
    kept_both: int

    @property
    def common(self) -> float:
        """|A∩B| / min(|A|, |B|), 0 to 1: how much of what the sparser keeps the other keeps too.

        Of equally sparse ones it is the share of kept weights in common; 1 if one keeps nothing.
        """
        fewer = min(self.kept_a, self.kept_b)
        return self.kept_both / fewer if fewer else 1.0

    @property
    def jaccard(self) -> float:
        """|A∩B| / |A∪B|, 0 to 1; 1 if nothing is kept."""
        union = self.kept_a + self.kept_b - self.kept_both
        return self.kept_both / union if union else 1.0

    @property
    def by_chance(self) -> float:
        """What ``common`` would be on average if both had kept as many by lot."""
        return max(self.kept_a, self.kept_b) / self.size

    def as_dict(self) -> dict[str, Any]:
        """Return counts and shares as plain values for JSON."""
        shares = {name: getattr(self, name) for name in ("common", "jaccard", "by_chance")}
        return {**vars(self), **shares}


def overlap(name: str, parts: Iterable[Overlap]) -> Overlap:
    """Return several linears as one, each weight counting alike."""
    parts = list(parts)
    keys = ("size", "kept_a", "kept_b", "kept_both")
    return Overlap(name, *(sum(getattr(part, key) for part in parts) for key in keys))


def overlaps(a: KeepMasks, b: KeepMasks) -> list[Overlap]:
    """Return the overlap of each linear that both have in the same shape, read one at a time."""
    return [
        _overlap(name, a, b)
        for name, shape in a.shapes.items()
        if tuple(b.shapes.get(name, ())) == tuple(shape)
    ]


def _overlap(name: str, a: KeepMasks, b: KeepMasks) -> Overlap:
    one, other = a.packed(name), b.packed(name)
    rows, columns = a.shapes[name]
    counts = (count_bits(bits) for bits in (one, other, one & other))
    return Overlap(name, rows * columns, *counts)


def block_of(name: str) -> str:
    """Return a linear's name as far as the number of its block: "model.layers.3"."""
    match = re.match(r".*?\.[0-9]+(?=\.)", name)
    return match[0] if match else name
