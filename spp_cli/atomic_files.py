"""Files that are whole or not there: written next to their place, then renamed into it.

The unfinished file has a hidden name that ends in ``UNFINISHED``, and its writer holds a lock on it
that the kernel ends with the process. So any process can tell what a killed writer left from what
is being written.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["UNFINISHED", "UnfinishedFile", "remove_leftovers"]

UNFINISHED = ".writing"


class UnfinishedFile:
    """A file whose bytes are with the system, but neither on the disk for sure nor in its place."""

    def __init__(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        self._path = path
        self._beside = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
        self._stream = _open_locked(self._beside)
        with self._or_nothing():
            write(self._stream)
            self._stream.flush()

    def finish(self) -> None:
        """Wait for the disk, then put the file in its place; a kill leaves all of it or nothing."""
        with self._or_nothing(), self._stream:
            os.fsync(self._stream.fileno())
            self._beside.replace(self._path)

    @contextmanager
    def _or_nothing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(OSError):
                self._beside.unlink()
            with suppress(OSError):  # what is still to be written fails once more
                self._stream.close()
            raise


def remove_leftovers(folder: Path, *, below: bool = False) -> None:
    """Remove what killed writers left in ``folder``, with ``below`` in all folders in it, too.

    What another process is writing stays, and so does what cannot be removed.
    """
    pattern = f".*{UNFINISHED}"
    with suppress(OSError):
        found = folder.rglob(pattern) if below else folder.glob(pattern)
        for path in filter(Path.is_file, list(found)):
            with suppress(OSError), path.open("r+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _open_locked(path: Path) -> BinaryIO:
    while True:
        stream = path.open("wb")
        with suppress(OSError):  # a file system without locks: nothing is taken for left over there
            fcntl.flock(stream, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        stream.close()  # somebody took it for left over before it was locked
