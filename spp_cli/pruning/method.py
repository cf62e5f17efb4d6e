"""What a pruning method is: one frozen model whose fields are its YAML keys, and its algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from spp_cli.config import Section
from spp_cli.pruning.statistics import Statistic
from spp_cli.sparsity.patterns import NofM, Pattern

if TYPE_CHECKING:
    from torch import Tensor

    from spp_cli.pruning.region import Region

__all__ = ["Pruned", "PruningMethod", "misfit_of_blocks"]


class Pruned(NamedTuple):
    """One layer's result: weight (out, in) float32, and keep (out, in), True where it stays.

    ``weight`` is zero wherever ``keep`` is False. ``record`` holds numbers worth keeping in the
    manifest, such as the method's own loss.
    """

    weight: Tensor
    keep: Tensor
    record: Mapping[str, float] = MappingProxyType({})


class PruningMethod(Section):
    """Base of all methods. A method sees one weight and what it asked to know of its inputs."""

    statistic: ClassVar[type[Statistic] | None] = None
    one_by_one: ClassVar[bool] = False  # whether sequences are to flow one at a time

    name: str

    @property
    def sees_blocks(self) -> bool:
        """Whether it looks at each dense block as a whole first: see ``see_block``."""
        return False

    def prepare(self, statistic: Any) -> Any:
        """Return what all layers that read one input can share, e.g. a factorisation.

        Raises:
            NumericalError: it cannot be computed; the engine adds the layers' names.
        """
        return statistic

    def prune(self, weight: Tensor, prepared: Any, pattern: Pattern) -> Pruned:
        """Return the pruned weight and its mask.

        Args:
            weight: (out_features, in_features), float32; not to be changed in place.
            prepared: what ``prepare`` returned; None if the method asks for no statistic.
            pattern: decides, from scores, what stays.
        """
        raise NotImplementedError

    def prune_together(
        self, weights: Sequence[Tensor], prepared: Any, patterns: Sequence[Pattern]
    ) -> list[Pruned]:
        """Return ``prune`` of each of the layers that read one input.

        A method that gains from it solves the rows of all layers at once, to the same result.
        """
        pairs = zip(weights, patterns, strict=True)
        return [self.prune(weight, prepared, pattern) for weight, pattern in pairs]

    def see_block(self, region: Region, patterns: Mapping[str, Pattern]) -> Mapping[str, Any]:
        """Return, by linear, what ``prune_seen`` is to know of it from its block as a whole.

        Asked only of methods that say ``sees_blocks``, with the dense block. They may move weights.
        A linear that is left out is pruned by ``prune``.
        """
        raise NotImplementedError

    def prune_seen(self, weight: Tensor, prepared: Any, pattern: Pattern, seen: Any) -> Pruned:
        """Do what ``prune`` does, of methods that say ``sees_blocks``."""
        raise NotImplementedError

    def workspace(self, rows: int, columns: int) -> int:
        """Return about how many bytes pruning takes, beside weights and statistic.

        ``rows`` are those of all layers that read one input of ``columns``.
        """
        return 20 * rows * columns  # scores, their selection, the mask and the pruned copy

    def block_workspace(self, weights: int) -> int:
        """Return about how many bytes it holds for a whole block of so many ``weights``."""
        return 0

    def misfit(self, pattern: Pattern) -> str | None:
        """Return why the method cannot prune to ``pattern``; None if it can."""
        return None


def misfit_of_blocks(block_size: int, pattern: Pattern) -> str | None:
    """Return why masks cannot be chosen ``block_size`` columns at a time; None if they can."""
    if isinstance(pattern, NofM) and block_size % pattern.of:
        return f"block_size is {block_size}; must be a multiple of {pattern.of} for {pattern}"
    return None
