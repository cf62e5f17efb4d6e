"""What an allocation is: it says which share of its weights each linear is to lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from spp_cli.config import Section

if TYPE_CHECKING:
    from spp_cli.allocation.dense import DenseModel
    from spp_cli.models.decoder import Linear

__all__ = ["Allocated", "Allocation", "Uniform"]


class Allocated(NamedTuple):
    """The ratio of each linear by name, 0 to 1; what to say of them; numbers for the manifest."""

    ratios: Mapping[str, float]
    summary: str
    record: Mapping[str, Any] = MappingProxyType({})


class Allocation(Section):
    """Base of all allocations: one frozen model whose fields are its YAML keys."""

    unmeasured: ClassVar[frozenset[str]] = frozenset()  # keys that ``measure`` does not look at

    name: str

    @property
    def passes(self) -> int:
        """How many times ``measure`` reads each block; 0 if it looks at no text."""
        return 0

    @property
    def gradient_samples(self) -> int:
        """Of how many calibration sequences ``measure`` takes gradients."""
        return 0

    @property
    def reads_text(self) -> bool:
        """Whether it looks at the calibration text."""
        return self.passes > 0

    def check(self, linears: Sequence[Linear], sparsity: float) -> None:
        """Refuse, before any text is read, what can never be allocated.

        Raises:
            ConfigError: the settings do not suit ``linears``, or cannot come to ``sparsity``.
        """

    def measure(self, linears: Sequence[Linear], dense: DenseModel) -> dict[str, float]:
        """Return what ``allocate`` goes by: kept, and taken for every sparsity.

        Asked only of those that read text.
        """
        raise NotImplementedError

    def allocate(
        self, linears: Sequence[Linear], sparsity: float, measured: Mapping[str, float]
    ) -> Allocated:
        """Return the ratio of each of ``linears``, at least 0 and below 1.

        Their mean, weighted by the number of weights, is ``sparsity``. ``measured`` is what
        ``measure`` returned; empty for those that read no text.
        """
        raise NotImplementedError


class Uniform(Allocation):
    """Every linear loses the same share."""

    name: Literal["uniform"] = "uniform"

    def allocate(
        self, linears: Sequence[Linear], sparsity: float, measured: Mapping[str, float]
    ) -> Allocated:
        ratios = {linear.name: sparsity for linear in linears}
        return Allocated(ratios, f"{sparsity:.4g} everywhere")
