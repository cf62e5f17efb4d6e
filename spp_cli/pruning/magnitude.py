"""Magnitude pruning: the smallest weights go. No calibration; the baseline of every paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from spp_cli.pruning.method import Pruned, PruningMethod
from spp_cli.sparsity.masks import zeroed
from spp_cli.sparsity.patterns import Pattern

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Magnitude"]


class Magnitude(PruningMethod):
    """Rank weights by |W|, over the whole layer (unstructured) or in each group (N:M)."""

    name: Literal["magnitude"] = "magnitude"

    def prune(self, weight: Tensor, prepared: Any, pattern: Pattern) -> Pruned:
        """Choose what stays of ``weight`` (out, in); kept weights are unchanged."""
        keep = pattern.keep(weight.abs(), within="layer")
        return Pruned(zeroed(weight, keep), keep)
