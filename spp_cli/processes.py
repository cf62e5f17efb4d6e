"""The processes that ``accelerate launch`` or ``torchrun`` started to do one command together.

Every process runs the whole command; the main one speaks, locks and writes, the others help it to
compute. Started in the usual way there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from spp_cli.errors import ConfigError, SppError

if TYPE_CHECKING:
    import torch

__all__ = [
    "add_up",
    "agree_on_lowest",
    "collect",
    "connect",
    "count",
    "count_here",
    "decide",
    "disconnect",
    "follow",
    "give_out",
    "has_to_tell",
    "is_main",
    "leading",
    "local_number",
    "main_first",
    "number",
    "send",
    "spread",
    "wait_for_all",
    "whole",
]

Value = TypeVar("Value")

_MISTAKE = "spp/mistake"  # where the main process leaves what it tells the user
_PATIENCE = 5.0  # seconds for it to find a mistake that another process has found

_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def count() -> int:
    """Return how many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if all(key in os.environ for key in _LAUNCHED) else 1


def number() -> int:
    """Return which of them this is; the main one is 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def local_number() -> int:
    """Return which of the processes on this machine this is."""
    return int(os.environ["LOCAL_RANK"]) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that speaks, locks and writes."""
    return number() == 0


def count_here() -> int:
    """Return how many processes there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count())) if count() > 1 else 1


def connect(device: torch.device) -> None:
    """Meet the other processes, each of which computes on a ``device`` of this kind.

    Raises:
        ConfigError: they do not come.
    """
    from torch import cuda, distributed

    if count() == 1 or distributed.is_initialized():
        return
    if device.type == "cuda":
        cuda.set_device(device)
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the {count()} processes of this command do not find each other: {error}. "
            "Start them with accelerate launch or torchrun"
        ) from error


def disconnect() -> None:
    """Part from the others."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def has_to_tell(mistake: str) -> bool:
    """Whether it is this process that has to tell the user of a mistake that it has found.

    What all find alike the main process tells. What it does not find, for a file that only another
    machine lacks, is told by whoever does. Before they are connected, the first process of each
    machine tells.
    """
    from torch.distributed import distributed_c10d, is_available, is_initialized

    if not (is_available() and is_initialized()):
        return local_number() == 0
    store = distributed_c10d._get_default_store()
    try:
        if is_main():
            store.set(_MISTAKE, mistake)
            return True
        # Not by the store's own way to wait, which complains when it has been in vain.
        end = time.monotonic() + _PATIENCE
        while not store.check([_MISTAKE]):
            if time.monotonic() > end:
                return True
            time.sleep(0.05)
        return bool(store.get(_MISTAKE).decode() != mistake)
    except RuntimeError:  # the main process has gone
        return True


@contextmanager
def leading() -> Iterator[Callable[[Any], None]]:
    """Lead the others: the main process tells them once what they wait for in ``follow``.

    They are told None if it fails before it has something to tell.
    """
    told = False

    def tell(value: Any) -> None:
        nonlocal told
        told = True
        give_out(value)

    try:
        yield tell
    finally:
        if not told:
            give_out(None)


def follow() -> Any:
    """Return what the main process tells the others; None: there is nothing to do."""
    return give_out(None)


@contextmanager
def main_first() -> Iterator[None]:
    """Have the others wait until the main process is through: what it has stored, they find."""
    if not is_main():
        give_out(None)
    try:
        yield
    finally:
        if is_main():
            give_out(None)


def decide(choose: Callable[[], Value]) -> Value:
    """Return what the main process chooses, a small thing; a mistake it finds is raised in all."""
    chosen: Value | SppError
    try:
        chosen = choose() if is_main() else None  # type: ignore[assignment]
    except SppError as error:
        chosen = error
    chosen = give_out(chosen)
    if isinstance(chosen, SppError):
        raise chosen
    return chosen


def wait_for_all() -> None:
    """Return when every process has come this far."""
    collect(None)


def add_up(tensors: Iterable[torch.Tensor]) -> None:
    """Replace each tensor by its sum over all processes, which all have it in this shape."""
    if count() > 1:
        from torch import distributed

        for tensor in tensors:
            distributed.all_reduce(tensor)


def send(tensor: torch.Tensor, sender: int) -> None:
    """Fill ``tensor`` with what the process ``sender`` has in it."""
    if count() > 1:
        from torch import distributed

        distributed.broadcast(tensor, sender)


def give_out(value: Any) -> Any:
    """Return the ``value`` of the main process, a small one; the others' is not looked at."""
    if count() == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def collect(value: Any) -> list[Any]:
    """Return the values, small ones, of all processes in order."""
    if count() == 1:
        return [value]
    from torch import distributed

    values = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def agree_on_lowest(value: int) -> int:
    """Return the lowest ``value`` of any process."""
    return min(collect(value))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor of which each process may hold a part; all have to ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def spread(tensor: torch.Tensor, like: Any) -> torch.Tensor:
    """Return ``tensor`` in parts, as the processes hold the tensor ``like``: undoes ``whole``."""
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements)
