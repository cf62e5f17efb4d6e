"""RIA: weights relative to their row and their column, times a power of the input's norm.

Zhang et al. 2024, Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
Models, ICLR 2024.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spp_cli.pruning.method import Pruned, PruningMethod
from spp_cli.pruning.statistics import InputNorm
from spp_cli.pruning.wanda import never_zero
from spp_cli.sparsity.masks import zeroed
from spp_cli.sparsity.patterns import Pattern

__all__ = ["RIA"]


class RIA(PruningMethod):
    """Rank weights by S_ij = (|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) · ‖X_j‖ᵃ.

    A weight that is much of what its input, or its output, has left is spared, however small.
    """

    statistic: ClassVar[type] = InputNorm

    name: Literal["ria"] = "ria"
    power: float = Field(
        0.5, ge=0, description="Power of the norm of the inputs, a in the paper; 0: weights alone"
    )
    within: Literal["layer", "row"] = Field(
        "layer",
        description="Where scores compete: over the whole layer, as in the released code, or in "
        "each row",
    )

    def prepare(self, statistic: InputNorm) -> Tensor:
        """Return ‖X_j‖ᵃ: (in_features,)."""
        return never_zero(statistic.norm()) ** self.power

    def prune(self, weight: Tensor, prepared: Tensor, pattern: Pattern) -> Pruned:
        """Choose what stays of ``weight`` (out_features, in_features); it is unchanged."""
        keep = pattern.keep(relative_importance(weight).mul_(prepared), within=self.within)
        return Pruned(zeroed(weight, keep), keep)


def relative_importance(weight: Tensor) -> Tensor:
    """Return the share of each weight in its column, and in its row, added up; 0 for a zero."""
    size = weight.abs()
    least = torch.finfo(size.dtype).tiny  # for rows and columns without any weight
    columns = size.sum(dim=0, keepdim=True).clamp_min(least)
    rows = size.sum(dim=1, keepdim=True).clamp_min(least)
    return size / columns + size / rows
