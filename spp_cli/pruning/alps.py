"""ALPS: the alternating direction method of multipliers finds the support, conjugate gradients fit.

Meng et al. 2024, ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language
Models, arXiv:2406.07831.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from spp_cli.deferred import Tensor, torch
from spp_cli.pruning.method import Pruned, PruningMethod
from spp_cli.pruning.reconstruction import energy
from spp_cli.pruning.statistics import Gram
from spp_cli.sparsity.masks import zeroed
from spp_cli.sparsity.patterns import Pattern

__all__ = ["ALPS"]

_EVERY = 3  # iterations between looks at the support
_SETTLED = 30  # iterations after which a support that hardly changes is taken
_HARDLY = 0.0003  # of the kept weights
# A support that changes by more than the share, of the kept weights, has ρ raised by the factor.
_RAISES = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
_LOWEST, _HIGHEST = 1e-6, 1e6  # of ρ
_ENOUGH = 1e-4  # residual of conjugate gradients, as a share of the right-hand side


class Spectrum(NamedTuple):
    """What layers with the same input share: H = QΛQᵀ, damped and scaled to a diagonal of ones."""

    hessian: Tensor  # (in_features, in_features)
    values: Tensor  # Λ: (in_features,)
    vectors: Tensor  # Q: (in_features, in_features)
    scale: Tensor  # (in_features,): that of the weights which H is scaled for
    dead: Tensor  # (in_features,) bool

    def inverse(self, rho: float) -> Tensor:
        """Return (H + ρ I)⁻¹."""
        return (self.vectors / (self.values + rho)) @ self.vectors.T


class ALPS(PruningMethod):
    """Split min ‖X W'ᵀ − X Wᵀ‖² with W' of the pattern into a smooth part, B, and a sparse one, D.

    B ← (B₀ H − V + ρ D)(H + ρ I)⁻¹;  D ← the largest of B + V/ρ;  V ← V + ρ (B − D). As ρ grows
    the two come to agree, and the support of D settles; on it conjugate gradients refine B.
    """

    statistic: ClassVar[type] = Gram

    name: Literal["alps"] = "alps"
    damping: float = Field(
        0.01, gt=0, description="Added to the Hessian's diagonal, as a share of its mean"
    )
    rho: float = Field(0.1, gt=0, description="ρ to begin with")
    iterations: int = Field(300, ge=1, description="Most iterations in search of the support")
    refinements: int = Field(
        10, ge=0, description="Iterations of conjugate gradients on the support"
    )

    def workspace(self, rows: int, columns: int) -> int:
        return 40 * rows * columns + 24 * columns * columns

    def prepare(self, statistic: Gram) -> Spectrum:
        """Return the eigenvalues and eigenvectors of the damped Hessian, scaled."""
        H = statistic.hessian()
        diagonal = H.diagonal()
        dead = diagonal == 0
        diagonal.add_(self.damping * diagonal.mean())
        diagonal[dead] = 1
        scale = diagonal.sqrt()
        H /= scale * scale[:, None]
        values, vectors = torch.linalg.eigh(H)
        return Spectrum(H, values.clamp_min_(0), vectors, scale, dead)

    def prune(self, weight: Tensor, prepared: Spectrum, pattern: Pattern) -> Pruned:
        """Return the pruned and refitted weight (out_features, in_features) and its mask.

        Should the search have led away from the dense weight's largest, those are taken: the
        alternating directions promise nothing where the pattern is no convex set.
        """
        H = prepared.hessian
        dense = (weight * prepared.scale).masked_fill_(prepared.dead, 0.0)
        wanted = dense @ H
        begun, largest = _largest(dense, pattern)
        found, iterations = self._search(dense, begun, largest, wanted, prepared, pattern)
        sparse, keep = _largest(found, pattern)
        fitted = _fit(H, wanted, keep, sparse, self.refinements)
        if energy(begun - dense, H) < energy(fitted - dense, H):
            fitted, keep = _fit(H, wanted, largest, begun, self.refinements), largest
        return Pruned(fitted / prepared.scale, keep, {"iterations": iterations})

    def _search(
        self,
        dense: Tensor,
        first: Tensor,
        support: Tensor,
        wanted: Tensor,
        spectrum: Spectrum,
        pattern: Pattern,
    ) -> tuple[Tensor, int]:
        """Return B when the support has settled, and the iterations it took.

        It begins with ``first``, the largest of the dense weights, on their ``support``.
        As long as the support has hardly moved, ρ is too high for it to, and falls to a fifth.
        """
        rho, has_moved = self.rho, False
        inverse = spectrum.inverse(rho)
        B, D, V = dense, first, torch.zeros_like(dense)
        kept = int(support.count_nonzero())
        for iteration in range(1, self.iterations + 1):
            B = torch.add(wanted, D, alpha=rho).sub_(V) @ inverse
            D, keep = _largest(torch.add(B, V, alpha=1 / rho), pattern)
            V.add_(B - D, alpha=rho)
            if iteration % _EVERY:
                continue
            changed, support = int((keep ^ support).count_nonzero()), keep
            if has_moved and (not changed or (iteration > _SETTLED and changed < _HARDLY * kept)):
                return B, iteration
            if rho < _LOWEST:
                return B, iteration
            share = changed / max(kept, 1)
            if has_moved or share > _RAISES[1][0]:
                has_moved = True
                rho *= next(factor for least, factor in _RAISES if share > least)
            else:
                rho /= 5
                if changed:
                    B, D, V = dense, first, torch.zeros_like(dense)
            rho = min(rho, _HIGHEST)
            inverse = spectrum.inverse(rho)
        return B, self.iterations


def _largest(weight: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Return ``weight`` with its largest entries alone, and their mask."""
    keep = pattern.keep(weight.abs(), within="layer")
    return zeroed(weight, keep), keep


def _fit(hessian: Tensor, wanted: Tensor, keep: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """Return ``weight`` after conjugate gradients for W' H = ``wanted`` on ``keep``, row by row."""
    residual = (wanted - weight @ hessian).masked_fill_(~keep, 0.0)
    direction = residual.clone()
    square = residual.square().sum(dim=1, keepdim=True)
    enough = _ENOUGH * wanted.norm(dim=1, keepdim=True)
    for _ in range(iterations):
        if not (square.sqrt() > enough).any():
            break
        image = (direction @ hessian).masked_fill_(~keep, 0.0)
        curvature = (direction * image).sum(dim=1, keepdim=True)
        step = (square / curvature).where(curvature > 0, 0.0)
        weight = torch.addcmul(weight, direction, step)
        residual.addcmul_(image, step, value=-1)
        before, square = square, residual.square().sum(dim=1, keepdim=True)
        direction = residual + direction * (square / before).where(before > 0, 0.0)
    return weight
