"""Keep the process as small as what it holds. Of use with glibc; elsewhere nothing is done."""

from __future__ import annotations

import ctypes
from contextlib import suppress

__all__ = ["return_free_memory"]


def return_free_memory() -> None:
    """Give freed heap back to the system.

    glibc keeps it for later, in pieces that the tensors of one block leave behind and that are too
    small for those of the next: a stage that holds one block at a time would grow with every block.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
