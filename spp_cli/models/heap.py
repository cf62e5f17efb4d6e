"""Keep the process as small as what it holds, where the C library is glibc; elsewhere do nothing.

glibc keeps freed memory for later. The tensors of a block leave behind pieces too small for those
of the next, and so a stage that holds one block at a time would grow with every block.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["large_pieces_apart", "return_free_memory"]

_M_MMAP_THRESHOLD = -3  # mallopt's number for it
_LARGE, _USUAL = 4 << 20, 32 << 20  # bytes; the second is what glibc comes to by itself


@contextmanager
def large_pieces_apart() -> Iterator[None]:
    """While in here, take what is large from the system, and give it back the moment it is freed.

    It costs some 3 % of time, to have the pages cleared again and again.
    """
    _set_threshold(_LARGE)
    try:
        yield
    finally:
        _set_threshold(_USUAL)


def return_free_memory() -> None:
    """Give freed heap back to the system."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set_threshold(size: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size)
