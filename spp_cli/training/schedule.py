"""How the learning rate goes up and down again while an adapter trains."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["DECAYS", "rate_factor"]

# schedule → share of the peak that is left, given the share of the steps since the peak, 0 to 1
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda since: 1 - since,
    "cosine": lambda since: (1 + math.cos(math.pi * since)) / 2,
    "constant": lambda since: 1.0,
}


def rate_factor(schedule: str, done: int, *, warmup: int, steps: int) -> float:
    """Return the factor of the peak learning rate for the step after ``done`` of ``steps``.

    Whatever the schedule, step k of the first ``warmup`` has k / warmup; then it decays. No step
    that trains has a rate of zero: with one it would be lost.
    """
    if done < warmup:
        return (done + 1) / warmup
    return DECAYS[schedule](min((done - warmup) / max(steps - warmup, 1), 1.0))
