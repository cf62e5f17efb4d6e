"""Dynamic Sparse No Training: swap pruned and kept weights until a layer's mean output is right.

Zhang et al. 2023, arXiv:2310.08915. Training-free; refines the mask of any method that leaves the
weights that stay as they were.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from spp_cli.deferred import Tensor, torch
from spp_cli.pruning.statistics import Moments
from spp_cli.refining.refinement import Refinement
from spp_cli.sparsity.patterns import NofM, Pattern

__all__ = ["DSnoT"]


class DSnoT(Refinement):
    """In each row, regrow the pruned weight that mends the expected error most, and prune another.

    With c_j = W_j μ_j the expected error of a row is e = Σ c_j over its pruned weights; μ_j is the
    sum over a sequence's tokens of input j, averaged over sequences. Regrown is the pruned weight
    with the largest c_j / v_j of the sign of e, v_j being the input's variance. Pruned is the kept
    weight with the lowest |W_j|·‖X_j‖: of those whose c_j has the other sign (unstructured), or of
    the same group (N:M). A row stops for good when |e| is below ``update_threshold`` or a candidate
    is wanting; with N:M also when a swap would turn the sign of e.

    A weight moves once at most, so the pattern holds after every swap. The released code runs on
    into its kept weights when the candidates are used up, and then breaks the pattern.
    """

    statistic: ClassVar[type] = Moments

    name: Literal["dsnot"] = "dsnot"
    max_cycles: int = Field(50, ge=1, description="Most swaps in a row")
    update_threshold: float = Field(
        0.1, ge=0, description="Expected error of a row, summed over a sequence, that is left alone"
    )

    def refine(self, weight: Tensor, keep: Tensor, statistic: Moments, pattern: Pattern) -> Tensor:
        """Return the refined mask of ``weight`` (out_features, in_features), dense, float32."""
        contribution = weight * statistic.mean()
        error = contribution.masked_fill(keep, 0).sum(dim=1)
        # Kept weights have the key 0, so that what may be regrown lies at the two ends.
        key = (contribution / statistic.variance().clamp_min(1e-12)).masked_fill(keep, 0)
        regrow_order = key.argsort(dim=1)
        low, high = torch.zeros_like(error).long(), torch.full_like(error, key.shape[1] - 1).long()
        score = (weight.abs() * statistic.norm()).masked_fill(~keep, torch.inf)
        candidates = (
            _ByGroup(score, pattern.of)
            if isinstance(pattern, NofM)
            else _BySign(score, contribution)
        )
        keep, active, initial_sign = keep.clone(), torch.ones_like(error).bool(), error.sign()
        for _ in range(self.max_cycles):
            positive = error > 0
            regrown = _pick(regrow_order, torch.where(positive, high, low))
            mends = _pick(key, regrown) * error.sign() > 0
            pruned, found = candidates.choose(regrown, positive)
            change = _pick(contribution, pruned) - _pick(contribution, regrown)
            active &= (error.abs() > self.update_threshold) & mends & found
            if isinstance(pattern, NofM):
                active &= (error + change).sign() == initial_sign
            if not active.any():
                break
            rows = active.nonzero().flatten()
            keep[rows, regrown[rows]] = True
            keep[rows, pruned[rows]] = False
            candidates.remove(rows, pruned[rows], positive[rows])
            error = error + change * active
            low, high = low + (active & ~positive).long(), high - (active & positive).long()
        return keep


class _BySign:
    """Kept weights in the order of their scores, those of either sign of c by themselves."""

    def __init__(self, score: Tensor, contribution: Tensor) -> None:
        self._queues = []
        for of_sign in (contribution > 0, contribution < 0):
            ordered, order = score.masked_fill(~of_sign, torch.inf).sort(dim=1)
            self._queues.append(
                (order, ordered.isfinite().sum(dim=1), torch.zeros_like(order[:, 0]))
            )

    def choose(self, regrown: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each row the next weight whose c lowers |e|, and whether there is one."""
        (up, many_up, next_up), (down, many_down, next_down) = self._queues
        last = up.shape[1] - 1
        chosen = torch.where(
            positive, _pick(down, next_down.clamp_max(last)), _pick(up, next_up.clamp_max(last))
        )
        return chosen, torch.where(positive, next_down < many_down, next_up < many_up)

    def remove(self, rows: Tensor, pruned: Tensor, positive: Tensor) -> None:
        """Go on to the next weight in the queues that were used."""
        (_, _, next_up), (_, _, next_down) = self._queues
        next_up[rows[~positive]] += 1
        next_down[rows[positive]] += 1


class _ByGroup:
    """Kept weights by their scores within each group of M."""

    def __init__(self, score: Tensor, size: int) -> None:
        self._score = score.view(len(score), -1, size).clone()
        self._size = size

    def choose(self, regrown: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each row the lowest of the regrown weight's group, and if there is one."""
        group = regrown // self._size
        lowest = self._score[torch.arange(len(group), device=group.device), group].min(dim=1)
        return group * self._size + lowest.indices, lowest.values.isfinite()

    def remove(self, rows: Tensor, pruned: Tensor, positive: Tensor) -> None:
        """Take the pruned weights from their groups."""
        self._score[rows, pruned // self._size, pruned % self._size] = torch.inf


def _pick(values: Tensor, columns: Tensor) -> Tensor:
    """Return the element of each row that ``columns`` (rows,) names."""
    return values.gather(1, columns[:, None]).squeeze(1)
