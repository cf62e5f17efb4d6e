"""What a recovery is: it fits the weights that stay, once their mask is decided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from spp_cli.config import Section
from spp_cli.pruning.method import Pruned
from spp_cli.pruning.statistics import Statistic

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NoRecovery", "Recovery"]


class Recovery(Section):
    """Base of all recoveries: one frozen model whose fields are its YAML keys."""

    statistic: ClassVar[type[Statistic] | None] = None

    name: str

    def recover(self, weight: Tensor, pruned: Pruned, statistic: Any) -> Pruned:
        """Return ``pruned`` with other weights under the same mask.

        Args:
            weight: (out_features, in_features), dense, float32.
            pruned: what method and refinement made of it; not to be changed in place.
            statistic: what ``statistic`` asks to know of the layer's inputs.
        """
        raise NotImplementedError

    def workspace(self, rows: int, columns: int) -> int:
        """Return about how many bytes it takes for ``rows``, beside weights and statistic."""
        return 0


class NoRecovery(Recovery):
    """Leaves the weights as they are."""

    name: Literal["none"] = "none"

    def recover(self, weight: Tensor, pruned: Pruned, statistic: Any) -> Pruned:
        return pruned
