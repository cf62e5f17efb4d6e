"""How far pruning moves a layer's output, from what was counted of the layer's inputs anyway."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from spp_cli.pruning.statistics import Gram, InputNorm, Statistic

__all__ = ["best_known", "output_error"]

_ROWS = 256  # of a layer, evenly spread, where each costs a product with the whole Gram matrix
_NAMES = {Gram: "gram", InputNorm: "norms"}  # the more exact first


def output_error(dense: Tensor, pruned: Tensor, statistics: Iterable[Statistic]) -> float:
    """Return ‖X (W' − W)ᵀ‖ / ‖X Wᵀ‖: 0 where the output stays, 1 where it is as if it were gone.

    X (tokens, in_features) is the calibration text as it comes to the layer when it is pruned, W
    the dense weight, W' what is stored; the norms are Frobenius'. With a Gram matrix of X the ratio
    is exact, but for rows beyond 256, of which so many are taken, evenly spread. With the norms of
    the inputs alone, different inputs count as uncorrelated: √(Σ ΔW²ᵢⱼ ‖xⱼ‖² / Σ W²ᵢⱼ ‖xⱼ‖²). With
    nothing, all inputs count as equally large too: ‖W' − W‖ / ‖W‖.

    Args:
        dense: (out_features, in_features), float32.
        pruned: the same, in the type in which it is stored.
        statistics: what is known of the layer's inputs.
    """
    known = {name: each for each in statistics if (name := _name(type(each)))}
    change = pruned.float() - dense
    if gram := known.get("gram"):
        every = -(-len(dense) // _ROWS)
        change, dense = change[::every], dense[::every]
    best = gram or known.get("norms")
    if best is None:
        energies = [torch.linalg.vector_norm(weight).square() for weight in (change, dense)]
    else:
        energies = [best.output_energy(weight) for weight in (change, dense)]
    lost, whole = energies
    # 0 / 0 is a layer that has no output, and so none to lose.
    return float((lost / whole).nan_to_num(0.0, posinf=0.0).clamp_min(0).sqrt())


def best_known(kinds: Iterable[type[Statistic]]) -> str:
    """Return from what ``output_error`` comes: "gram", "norms", or "weights" with no statistic."""
    names = {_name(kind) for kind in kinds}
    return next((name for name in _NAMES.values() if name in names), "weights")


def _name(kind: type[Statistic]) -> str | None:
    return next((name for known, name in _NAMES.items() if issubclass(kind, known)), None)
