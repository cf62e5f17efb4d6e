"""Wanda: score a weight by its size times that of its input (Sun et al. 2023, arXiv:2306.11695)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from spp_cli.deferred import Tensor, torch
from spp_cli.pruning.method import Pruned, PruningMethod
from spp_cli.pruning.statistics import Gram, InputNorm
from spp_cli.sparsity.masks import zeroed
from spp_cli.sparsity.patterns import NofM, Pattern

__all__ = ["Wanda", "never_zero"]


class Wanda(PruningMethod):
    """Rank weights inside each output row by S[i, j] = |W[i, j]| · ‖X[:, j]‖.

    Kept weights are returned bit for bit: Wanda chooses, it never repairs.
    """

    statistic: ClassVar[type] = InputNorm

    name: Literal["wanda"] = "wanda"
    variant: Literal["row", "alpha"] = Field(
        "row",
        description="row: each row loses the same share; alpha: each row loses the same share of "
        "its total score (appendix of the paper), sparsity within 0.001 of what is asked",
    )

    def misfit(self, pattern: Pattern) -> str | None:
        if self.variant == "alpha" and isinstance(pattern, NofM):
            return "variant alpha chooses a count for each row, which N:M fixes. Use variant: row"
        return None

    def prune(self, weight: Tensor, prepared: InputNorm | Gram, pattern: Pattern) -> Pruned:
        """Choose what stays of ``weight`` (out_features, in_features) by ``prepared.norm()``."""
        scores = weight.abs() * never_zero(prepared.norm())
        if self.variant == "alpha":
            keep = _keep_by_alpha(scores, pattern.sparsity)
        else:
            keep = pattern.keep(scores, within="row")
        return Pruned(zeroed(weight, keep), keep)


def never_zero(norm: Tensor) -> Tensor:
    """Lift the norms of dead inputs to a trifle, so that |W| decides among their weights.

    With a norm of zero all their scores would be equal, and the first columns would go.
    """
    alive = norm[norm > 0]
    trifle = alive.min() * 1e-6 if len(alive) else torch.ones_like(norm[0])
    return norm.where(norm > 0, trifle)


def _keep_by_alpha(scores: Tensor, sparsity: float) -> Tensor:
    """Keep what lies above a share α of each row's cumulative score; bisect α in [0, 0.8].

    Stops within 0.001 of ``sparsity``, or when the bracket is narrower than 0.001, as the released
    code does; but goes on in [0.8, 1] where 0.8 removes too little. A row whose smallest score
    already exceeds its share loses nothing.
    """
    ordered, order = torch.sort(scores, dim=1, stable=True)
    cumulative = ordered.cumsum(dim=1)
    total = scores.sum(dim=1, keepdim=True)
    low, high, narrowest, alpha = 0.0, 0.8, 1e-3, 0.4
    while True:
        goes = cumulative <= alpha * total  # in each row a run of the lowest scores
        reached = goes.float().mean().item()
        if abs(reached - sparsity) <= 0.001 or high - low < narrowest:
            if high != 0.8 or reached >= sparsity:
                return torch.ones_like(goes).scatter_(1, order, ~goes)
            high, narrowest = 1.0, 1e-6
        if reached > sparsity:
            high = alpha
        else:
            low = alpha
        alpha = (low + high) / 2
