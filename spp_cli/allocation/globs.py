"""Ratios by hand: a glob of linears and the share they lose; the rest makes up for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from spp_cli.allocation.allocation import Allocated, Allocation
from spp_cli.allocation.budget import weighted_mean
from spp_cli.errors import ConfigError

if TYPE_CHECKING:
    from spp_cli.models.decoder import Linear

__all__ = ["Globs"]

_KEY = "prune.allocation"
_CLOSE = 1e-9  # two overall sparsities nearer than this are one


def _ratio(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise PydanticCustomError("ratio", "must be a number of at least 0 and below 1")
    return float(value)


class Globs(Allocation):
    """Linears lose what the first glob that matches their name says; the rest all one ratio.

    That one makes the overall ratio exact. Each glob is a key: ``{"*.mlp.*": 0.8}``.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[float, BeforeValidator(_ratio)]]

    name: Literal["globs"] = "globs"

    def check(self, linears: Sequence[Linear], sparsity: float) -> None:
        _share_of_rest(linears, self._given(linears), sparsity)

    def allocate(
        self, linears: Sequence[Linear], sparsity: float, measured: Mapping[str, float]
    ) -> Allocated:
        given = self._given(linears)
        rest = [linear for linear in linears if linear.name not in given]
        share = _share_of_rest(linears, given, sparsity)
        ratios = {linear.name: given.get(linear.name, share) for linear in linears}
        parts = [f"{ratio:.4g} for {glob}" for glob, ratio in self.__pydantic_extra__.items()]
        if rest:
            parts.append(f"{share:.4f} for the rest")
        return Allocated(ratios, ", ".join(parts), {"rest": share if rest else None})

    def _given(self, linears: Sequence[Linear]) -> dict[str, float]:
        """Return the ratio of each linear that a glob matches, by name."""
        if not self.__pydantic_extra__:
            raise ConfigError(
                f"{_KEY} names no layers. Write globs and their ratios, such as "
                "{'*.mlp.*': 0.8}, or choose uniform, owl or sensitivity"
            )
        from spp_cli.models.decoder import select  # not above: it needs transformers

        given: dict[str, float] = {}
        for glob, ratio in self.__pydantic_extra__.items():
            matched = [linear.name for linear in select(linears, [glob], [], (_KEY, _KEY))]
            if given.keys() >= set(matched):
                raise ConfigError(
                    f"{_KEY} has {glob!r}, all of whose layers match a glob before it; "
                    "the first counts. Put it further up, or leave it out"
                )
            given = {**dict.fromkeys(matched, ratio), **given}
        return given


def _share_of_rest(linears: Sequence[Linear], given: dict[str, float], sparsity: float) -> float:
    """Return what all linears that are not ``given`` lose, so that the mean is ``sparsity``."""
    sizes = [linear.weight.numel() for linear in linears]
    free = sum(
        size for linear, size in zip(linears, sizes, strict=True) if linear.name not in given
    )
    least = weighted_mean([given.get(linear.name, 0.0) for linear in linears], sizes)
    most = least + free / sum(sizes)
    if not free and abs(least - sparsity) > _CLOSE:
        raise ConfigError(
            f"prune.sparsity is {sparsity:g}; the globs of {_KEY} match every layer and make it "
            f"{least:.12g}. Set prune.sparsity to that, or leave some layers to no glob"
        )
    if free and not least <= sparsity + _CLOSE < most:
        raise ConfigError(
            f"prune.sparsity is {sparsity:g}; the globs of {_KEY} leave it between {least:.4g} and "
            f"{most:.4g}, whatever the other layers lose. Change prune.sparsity, or the ratios"
        )
    return max(0.0, (sparsity - least) * sum(sizes) / free) if free else sparsity
