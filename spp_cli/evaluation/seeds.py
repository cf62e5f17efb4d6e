"""The random numbers that a task draws, as the command of lm-evaluation-harness lets it draw."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["FEWSHOT", "drawing", "state"]

# The harness's own defaults: of Python's generator, of NumPy's and torch's, and of its examples.
PYTHON, OTHERS, FEWSHOT = 0, 1234, 1234


@contextmanager
def drawing(begin: Any = None) -> Iterator[None]:
    """Let all generators go on from ``begin``, a ``state``; without it from the harness's seeds.

    Afterwards they are as they were before.
    """
    before = state()
    if begin is None:
        random.seed(PYTHON)
        np.random.seed(OTHERS)
        torch.manual_seed(OTHERS)
    else:
        _set(begin)
    try:
        yield
    finally:
        _set(before)


def state() -> Any:
    """Return where the generators of Python, NumPy and torch are, on all devices."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), gpus


def _set(found: Any) -> None:
    python, numpy, cpu, gpus = found
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if gpus:
        torch.cuda.set_rng_state_all(gpus)
