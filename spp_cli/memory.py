"""How much memory this process has taken at its peak, in bytes."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["forget_peaks", "gpu_peak", "peak_memory", "process_peak"]


def process_peak() -> int:
    """Return the most main memory that this process has held, in bytes."""
    try:
        # Unlike what getrusage says, this counts nothing of the process that started this one.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):  # another system than Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024)


def gpu_peak() -> int:
    """Return the most memory of the GPU that tensors have taken, in bytes; 0 without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    return int(torch.cuda.max_memory_allocated())


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes, GPU included if it was used."""
    return process_peak() + gpu_peak()


def forget_peaks() -> bool:
    """Let both peaks begin anew from what is held now; return whether the process's did."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # another system than Linux
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False
