"""What a refinement is: it looks once more at the mask that a pruning method chose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from spp_cli.config import Section
from spp_cli.pruning.method import Pruned
from spp_cli.pruning.statistics import Statistic
from spp_cli.sparsity.patterns import Pattern

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NoRefinement", "Refinement"]


class Refinement(Section):
    """Base of all refinements: one frozen model whose fields are its YAML keys."""

    statistic: ClassVar[type[Statistic] | None] = None

    name: str

    def refine(self, weight: Tensor, keep: Tensor, statistic: Any, pattern: Pattern) -> Tensor:
        """Return the refined mask, with as many weights kept in the same pattern.

        Args:
            weight: (out_features, in_features), dense, float32.
            keep: the method's mask, True where a weight stays; not to be changed in place.
            statistic: what ``statistic`` asks to know of the layer's inputs.
            pattern: what the mask must go on to be.
        """
        raise NotImplementedError

    def apply(self, weight: Tensor, pruned: Pruned, statistic: Any, pattern: Pattern) -> Pruned:
        """Return ``pruned`` with its mask refined.

        A weight that comes back has its dense value; one that stays, what the method made of it.
        """
        keep = self.refine(weight, pruned.keep, statistic, pattern)
        swapped = int((keep & ~pruned.keep).sum())
        mixed = pruned.weight.where(pruned.keep, weight).masked_fill(~keep, 0.0)
        return Pruned(mixed, keep, {**pruned.record, "swapped": swapped})


class NoRefinement(Refinement):
    """Leaves the mask as the method chose it."""

    name: Literal["none"] = "none"

    def apply(self, weight: Tensor, pruned: Pruned, statistic: Any, pattern: Pattern) -> Pruned:
        return pruned
