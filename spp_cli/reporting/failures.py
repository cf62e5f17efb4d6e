"""From an exception to what the user reads, and the code the process ends with."""

from __future__ import annotations

import sys
from errno import EDQUOT, ENOSPC

from spp_cli import processes
from spp_cli.errors import SppError
from spp_cli.foreign import one_line

__all__ = ["BUG", "INTERRUPTED", "USER_MISTAKE", "failure"]

USER_MISTAKE, BUG, INTERRUPTED = 2, 70, 130
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_LOST = ("gloo", "nccl", "connection reset by peer", "connection closed by peer")


def failure(error: BaseException) -> tuple[str, int]:
    """Return one line for each mistake, and the exit code."""
    if isinstance(error, SppError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return (
            "interrupted. Finished stages are kept, and so are the checkpoints of this one. "
            "Run the same command again to go on"
        ), INTERRUPTED
    if _is_out_of_memory(error):
        return (
            "out of memory. What was done is resumed with a smaller prune.calibration.batch_size "
            "or eval.batch_size, and in a finetune with gradient_checkpointing: true, "
            "base_storage: packed, or a smaller batch_size and gradient_accumulation_steps larger "
            "by as much. Fewer samples or a shorter sequence_length need --force"
        ), USER_MISTAKE
    if _is_loss_of_another_process(error):
        return (
            "another process of this command has ended: it says why, unless it was killed. "
            "Run the same command again to go on"
        ), USER_MISTAKE
    if isinstance(error, OSError):
        return one_line(_disk_or_network(error)), USER_MISTAKE
    return (
        f"{type(error).__name__}: {one_line(_first_line(error))}. This is a mistake in spp, not in "
        "what you asked. Run the command again with --debug to see where"
    ), BUG


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    # Without torch loaded there is no error of torch's, and it is not worth loading for the answer.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


def _is_loss_of_another_process(error: BaseException) -> bool:
    text = str(error).lower()
    is_told_by_torch = isinstance(error, RuntimeError) and any(word in text for word in _LOST)
    return is_told_by_torch and processes.count() > 1


def _disk_or_network(error: OSError) -> str:
    what = f"{error.filename}: {error.strerror}" if error.filename else _first_line(error)
    if error.errno in (ENOSPC, EDQUOT):
        return f"{what}. Finished stages are intact. Free some space, then run the command again"
    return what


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else "no message"
