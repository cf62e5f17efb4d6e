"""RIA: weights relative to their row and their column, times a power of the input's norm.

Zhang et al. 2024, Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
Models, ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from spp_cli.deferred import Tensor, torch
from spp_cli.pruning.method import Pruned, PruningMethod
from spp_cli.pruning.region import Region
from spp_cli.pruning.statistics import InputNorm
from spp_cli.pruning.wanda import never_zero
from spp_cli.sparsity.masks import zeroed
from spp_cli.sparsity.patterns import NofM, Pattern

__all__ = ["RIA", "dealt_out", "relative_importance"]


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
    permute: bool = Field(
        False,
        description="With N:M, deal the important inputs of a layer out to all groups, where the "
        "layers that make them can give them in that order (down_proj, where none has a bias)",
    )

    def misfit(self, pattern: Pattern) -> str | None:
        if self.permute and not isinstance(pattern, NofM):
            return (
                "permute deals inputs out to the groups of N:M, and there are none. "
                "Set --pattern, such as 2:4, or permute: false"
            )
        return None

    @property
    def sees_blocks(self) -> bool:
        return self.permute

    def see_block(self, region: Region, patterns: Mapping[str, Pattern]) -> dict[str, Tensor]:
        """Put the inputs of linears into another order, where the block stays the same by it."""
        known = region.known(range(len(region)), InputNorm)
        for linear in region.linears:
            pattern, inputs = patterns[linear.name], known[linear.name]
            if isinstance(pattern, NofM) and inputs is not None:
                norms = self.prepare(inputs[InputNorm])  # type: ignore[arg-type]
                scores = relative_importance(linear.weight.float()).mul_(norms)
                region.fold(linear, dealt_out(scores.sum(dim=0), pattern.of))
        return {}

    def prepare(self, statistic: InputNorm) -> Tensor:
        """Return ‖X_j‖ᵃ: (in_features,)."""
        return never_zero(statistic.norm()) ** self.power

    def prune(self, weight: Tensor, prepared: Tensor, pattern: Pattern) -> Pruned:
        """Choose what stays of ``weight`` (out_features, in_features); it is unchanged."""
        keep = pattern.keep(relative_importance(weight).mul_(prepared), within=self.within)
        return Pruned(zeroed(weight, keep), keep)


def dealt_out(totals: Tensor, size: int) -> Tensor:
    """Return an order of inputs in which every group of ``size`` has its share of important ones.

    The highest of ``totals`` go to the groups one each, the next in reverse, and so on: (inputs,).
    """
    rows = totals.argsort(descending=True, stable=True).view(size, -1).clone()
    rows[1::2] = rows[1::2].flip(1)
    return rows.T.flatten()


def relative_importance(weight: Tensor) -> Tensor:
    """Return the share of each weight in its column, and in its row, added up; 0 for a zero."""
    size = weight.abs()
    least = torch.finfo(size.dtype).tiny  # for rows and columns without any weight
    columns = size.sum(dim=0, keepdim=True).clamp_min(least)
    rows = size.sum(dim=1, keepdim=True).clamp_min(least)
    return size / columns + size / rows
