"""FISTAPruner: the l1 norm makes weights small, rounding makes them zero.

Zhao et al. 2024, arXiv:2408.03728.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from spp_cli.deferred import Tensor, torch
from spp_cli.pruning.factor import Factor
from spp_cli.pruning.method import Pruned, PruningMethod
from spp_cli.pruning.reconstruction import Reconstruction
from spp_cli.pruning.sparsegpt import SparseGPT
from spp_cli.pruning.statistics import PairedGram
from spp_cli.pruning.wanda import Wanda
from spp_cli.sparsity.masks import zeroed
from spp_cli.sparsity.patterns import NofM, Pattern

__all__ = ["Fista", "lasso"]

_POWER_ITERATIONS = 100
_SLACK = 1.02  # what is found of the largest eigenvalue lies below it
_BLOCK_SIZE = 128  # of a start from SparseGPT
_LOWEST_PENALTY = 1e-4  # as a share of the penalty at which nothing is left


class Inputs(NamedTuple):
    """What layers with the same input share: its Gram matrix G, and how the search sees it."""

    statistic: PairedGram
    hessian: Tensor  # G: (in_features, in_features)
    scale: Tensor  # (in_features,), by which inputs are divided, and weights multiplied
    scaled: Tensor  # G of the inputs so scaled
    largest: float  # its largest eigenvalue
    factor: Factor | None  # for a start from SparseGPT


class Fista(PruningMethod):
    """Minimise ½‖X W'ᵀ − Y Wᵀ‖² + λ Σ|W'_ij|, round W' to the pattern, and find the λ that suits.

    Y are the inputs that the dense block gives the layer, X those that come from the layers of the
    block that are pruned already; where the order knows of Y, the errors of earlier layers are made
    good by later ones.
    """

    statistic: ClassVar[type] = PairedGram

    name: Literal["fista"] = "fista"
    start: Literal["wanda", "sparsegpt", "dense"] = Field(
        "wanda", description="What the first search begins with: the layer as pruned so, or dense"
    )
    iterations: int = Field(20, ge=1, description="Steps of FISTA with one λ")
    rounds: int = Field(10, ge=1, description="Most values of λ that are tried")
    patience: int = Field(3, ge=1, description="Rounds without a lower error after which it ends")
    rounding: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="Share of the error that rounding may make; above it λ rises, below it falls",
    )
    normalize: bool = Field(
        False,
        description="Bring all inputs to one norm first: else a few large ones set the step and "
        "the penalty for all others",
    )

    def workspace(self, rows: int, columns: int) -> int:
        return 40 * rows * columns + (24 if self.normalize else 20) * columns * columns

    def prepare(self, statistic: PairedGram) -> Inputs:
        """Return G, as it is and as the search sees it, and what the start needs.

        Raises:
            NumericalError: the start is SparseGPT's, and the Hessian cannot be factorised.
        """
        factor = SparseGPT().prepare(statistic) if self.start == "sparsegpt" else None
        hessian = statistic.hessian()
        scale, scaled = hessian.new_ones(len(hessian)), hessian
        if self.normalize:
            norms = hessian.diagonal().sqrt()
            scale = norms.where(norms > 0, 1.0)
            scaled = hessian / scale / scale[:, None]
        return Inputs(statistic, hessian, scale, scaled, _largest_eigenvalue(scaled), factor)

    def prune(self, weight: Tensor, prepared: Inputs, pattern: Pattern) -> Pruned:
        """Return the best rounded solution that any λ gave: (out_features, in_features).

        λ is bisected, on a logarithmic scale, between that at which nothing is left and a
        ten-thousandth of it. Each search begins where the best one before it ended. The recorded
        ``error`` is ‖X W'ᵀ − Y Wᵀ‖ over that of the start.
        """
        problem = Reconstruction(weight, prepared.statistic, prepared.hessian)
        scale = prepared.scale
        targets = problem.targets().div_(scale)
        begin = self._start(weight, prepared, pattern) * scale
        keep = pattern.keep(begin.abs(), within="layer")
        best = zeroed(begin, keep).div_(scale)
        first = lowest = problem.error(best).item()
        high = targets.abs().max().item()
        low = high * _LOWEST_PENALTY
        penalty, stale, rounds = 0.0, 0, 0
        # Without a single live input any weight is as good as any other.
        while high > 0 and stale < self.patience and rounds < self.rounds:
            rounds += 1
            tried = math.sqrt(low * high)
            solution = lasso(
                prepared.scaled, targets, begin, tried, prepared.largest, self.iterations
            )
            chosen = pattern.keep(solution.abs(), within="layer")
            rounded = zeroed(solution, chosen).div_(scale)
            error = problem.error(rounded).item()
            lost = problem.distance(rounded, solution / scale).item()
            stale += 1
            if error < lowest:
                best, keep, begin = rounded, chosen, solution
                lowest, penalty, stale = error, tried, 0
            if lost > self.rounding**2 * error:
                low = tried
            else:
                high = tried
        if (keep & (best == 0)).any():
            # The penalty took more of a group of N:M than the pattern does: fit what may stay.
            fitted = lasso(
                prepared.scaled, targets, best * scale, 0.0, prepared.largest, self.iterations, keep
            ).div_(scale)
            if (error := problem.error(fitted).item()) < lowest:
                best, lowest = fitted, error
        share = math.sqrt(max(lowest, 0.0) / first) if first > 0 else 1.0
        return Pruned(best, keep, {"error": share, "penalty": penalty, "rounds": rounds})

    def _start(self, weight: Tensor, prepared: Inputs, pattern: Pattern) -> Tensor:
        """Return the weight that the search begins with."""
        if prepared.factor is not None:
            # Blocks that hold whole groups of N:M, near to the default's size.
            of = pattern.of if isinstance(pattern, NofM) else 1
            start = SparseGPT(block_size=of * max(1, _BLOCK_SIZE // of))
            return start.prune(weight, prepared.factor, pattern).weight
        if self.start == "wanda":
            return Wanda().prune(weight, prepared.statistic, pattern).weight
        # The weights of dead inputs do nothing, and no gradient would ever move them.
        return weight.masked_fill(prepared.hessian.diagonal() == 0, 0.0)


def lasso(
    G: Tensor,
    B: Tensor,
    start: Tensor,
    penalty: float,
    largest: float,
    iterations: int,
    keep: Tensor | None = None,
) -> Tensor:
    """Return W after ``iterations`` of FISTA for min ½⟨W, W G⟩ − ⟨W, B⟩ + penalty · Σ|W_ij|.

    W_k+1 = shrink(V_k − (V_k G − B) / L, penalty / L), V_k+1 = W_k+1 + (t_k − 1)/t_k+1 · (W_k+1 −
    W_k), t_k+1 = (1 + √(1 + 4 t_k²))/2, with V_0 = W_0 = ``start`` and t_0 = 1.

    Args:
        G: (in_features, in_features); ``largest``, its largest eigenvalue or more, is L.
        B: (out_features, in_features).
        keep: which of W may differ from zero; None: all.

    Source: Beck & Teboulle 2009, A Fast Iterative Shrinkage-Thresholding Algorithm.
    """
    W = V = start
    t = 1.0
    for _ in range(iterations):
        stepped = torch.addmm(B, V, G, beta=1 / largest, alpha=-1 / largest).add_(V)
        previous, W = W, torch.nn.functional.softshrink(stepped, penalty / largest)
        if keep is not None:
            W = zeroed(W, keep)
        after = (1 + math.sqrt(1 + 4 * t * t)) / 2
        V = torch.lerp(previous, W, 1 + (t - 1) / after)
        t = after
    return W


def _largest_eigenvalue(hessian: Tensor) -> float:
    """Return the largest eigenvalue by power iteration, and a little more; it takes products only.

    It begins with a vector drawn at random, the same each time, which is orthogonal to none.
    """
    drawn = torch.randn(len(hessian), generator=torch.Generator().manual_seed(0))
    vector = drawn.to(hessian.device)
    for _ in range(_POWER_ITERATIONS):
        vector = hessian @ (vector / vector.norm().clamp_min(1e-30))
    return vector.norm().item() * _SLACK or 1.0
