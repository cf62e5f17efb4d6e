"""How many sequences go through a model at once: as configured, or what its memory holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

__all__ = ["MOST", "within_memory"]

MOST = 64  # sequences that are tried first on a GPU; more than that gains next to nothing
_ON_CPU = 8  # larger batches are no faster there, and pad more
Result = TypeVar("Result")


def within_memory(
    measure: Callable[[int], Result],
    batch_size: int | Literal["auto"],
    device: torch.device,
    *,
    most: int = MOST,
) -> Result:
    """Return ``measure(batch_size)``; for "auto" the size is halved as long as memory runs out.

    ``measure`` begins anew, or goes on where it was, each time that it is called. ``most`` is a
    limit on any size.

    Raises:
        RuntimeError: memory runs out with a size that was configured, or with one sequence alone.
    """
    if batch_size != "auto":
        return measure(min(batch_size, most))
    size = min(_ON_CPU if device.type == "cpu" else MOST, most)
    while True:
        try:
            return measure(size)
        except RuntimeError as error:
            if size == 1 or not should_reduce_batch_size(error):
                raise
        # Only here, where the error and the tensors that its traceback holds are gone.
        clear_device_cache(garbage_collection=True)
        size //= 2
