"""How well a sparse layer gives the outputs that are wanted of it: from Gram matrices alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spp_cli.pruning.statistics import Gram, PairedGram

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Reconstruction", "energy"]


def energy(weight: Tensor, gram: Tensor) -> Tensor:
    """Return ‖X Wᵀ‖², a number, of W = ``weight`` (rows, in_features) and XᵀX = ``gram``."""
    return ((weight @ gram) * weight).sum()


class Reconstruction:
    """E(W') = ‖X W'ᵀ − Y Wᵀ‖², for one layer; W is the dense weight, W' the sparse one.

    X are the inputs as they come to the layer, Y those that the dense block gives it: the same,
    unless the statistic has looked at both (``PairedGram``). With G = XᵀX, D = W' − W and
    R = W (Y − X)ᵀX it is ⟨D, D G − 2 R⟩ + ‖(Y − X) Wᵀ‖², which loses fewer digits than what it
    comes from. All are scaled as ``Gram`` is.
    """

    def __init__(self, weight: Tensor, statistic: Gram, hessian: Tensor) -> None:
        self._weight = weight
        self._hessian = hessian  # G: (in_features, in_features)
        self._shift: Tensor | None = None  # R: (out_features, in_features)
        self._unavoidable: Tensor | float = 0.0  # what D = 0 leaves of E
        if isinstance(statistic, PairedGram) and (pair := statistic.difference()):
            cross, square = pair
            self._shift = weight @ cross
            self._unavoidable = energy(weight, square)

    def targets(self) -> Tensor:
        """Return W YᵀX, (out_features, in_features): where it is W' G, E is lowest."""
        targets = self._weight @ self._hessian
        return targets if self._shift is None else targets.add_(self._shift)

    def residual(self, weight: Tensor) -> Tensor:
        """Return W YᵀX − W' XᵀX for W' = ``weight``, minus half of the gradient of E."""
        residual = (self._weight - weight) @ self._hessian
        return residual if self._shift is None else residual.add_(self._shift)

    def error(self, weight: Tensor) -> Tensor:
        """Return E of ``weight`` (out_features, in_features), a number."""
        change = weight - self._weight
        slope = change @ self._hessian
        if self._shift is not None:
            slope.sub_(self._shift, alpha=2)
        return (change * slope).sum() + self._unavoidable

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Return ‖X (one − other)ᵀ‖², a number."""
        return energy(one - other, self._hessian)
