"""OWL: blocks whose Wanda scores stand out keep more (Yin et al. 2024, arXiv:2310.05175)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from spp_cli.allocation.allocation import Allocated, Allocation
from spp_cli.allocation.budget import balanced, highest_ratio
from spp_cli.deferred import Tensor, torch
from spp_cli.errors import not_finite
from spp_cli.pruning.statistics import InputNorm

if TYPE_CHECKING:
    from spp_cli.allocation.dense import DenseModel
    from spp_cli.models.decoder import Linear

__all__ = ["OWL", "outlier_percentage"]


class OWL(Allocation):
    """Each block keeps the more, the more of its Wanda scores are outliers.

    All linears of a block lose the same share. The percentages of outliers, rescaled to a width of
    2 · ``width``, are added to the share that stays. What leaves the range of possible ratios is
    clipped, and the mean over blocks restored, here weighted by their sizes. A block that no text
    reaches loses the share asked for.
    """

    unmeasured: ClassVar[frozenset[str]] = frozenset({"width"})

    name: Literal["owl"] = "owl"
    multiple: float = Field(
        3.0, gt=0, description="A score above so many times the mean of its block is an outlier"
    )
    width: float = Field(
        0.08, gt=0, lt=0.5, description="Half of the range of the blocks' ratios, λ in the paper"
    )

    @property
    def passes(self) -> int:
        return 1

    def measure(self, linears: Sequence[Linear], dense: DenseModel) -> dict[str, float]:
        """Return of each block, by its path, how many of 100 scores are outliers.

        Blocks that no text reaches are left out.
        """
        return {
            path: outlier_percentage(
                [(linear.name, linear.weight, norm.norm()) for linear, norm in scored],
                self.multiple,
            )
            for path, scored in dense.statistics(linears, InputNorm)
            if scored
        }

    def allocate(
        self, linears: Sequence[Linear], sparsity: float, measured: Mapping[str, float]
    ) -> Allocated:
        blocks = {
            path: [linear for linear in linears if linear.name.startswith(f"{path}.")]
            for path in measured
        }
        sizes = [sum(linear.weight.numel() for linear in inside) for inside in blocks.values()]
        shares = self.ratios(list(measured.values()), sizes, sparsity)
        ratios = {linear.name: sparsity for linear in linears}
        for inside, share in zip(blocks.values(), shares, strict=True):
            ratios |= {linear.name: share for linear in inside}
        listed = " ".join(f"{share:.3f}" for share in shares)
        return Allocated(ratios, f"{listed}, block by block", {"outlier_percentage": measured})

    def ratios(
        self, outliers: Sequence[float], sizes: Sequence[int], sparsity: float
    ) -> list[float]:
        """Return the ratio of each block, given its percentage of outliers and its size."""
        if not outliers:
            return []
        most, least = max(outliers), min(outliers)
        width = 2 * self.width / (most - least) if most > least else 0.0
        wanted = [width * (most - percentage) for percentage in outliers]
        return balanced(wanted, sizes, sparsity, highest_ratio(sparsity))


def outlier_percentage(scored: Sequence[tuple[str, Tensor, Tensor]], multiple: float) -> float:
    """Return how many of a block's Wanda scores, of 100, exceed ``multiple`` times their mean.

    Args:
        scored: name, weight (out_features, in_features) and norm of the inputs (in_features,) of
            each linear. The scores are made twice, so that never those of two are in memory.
        multiple: K in the paper, or M.

    Raises:
        NumericalError: a score is NaN or infinite.
    """
    size, total = 0, 0.0
    for name, weight, norm in scored:
        size += weight.numel()
        total += (weight.float().abs() * norm).sum(dtype=torch.float64).item()
        if not math.isfinite(total):
            raise not_finite(f"the weights or the inputs of {name} hold")
    threshold = multiple * total / size
    above = sum(int((weight.float().abs() * norm > threshold).sum()) for _, weight, norm in scored)
    return 100 * above / size
