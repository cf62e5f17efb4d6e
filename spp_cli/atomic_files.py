"""Files that are whole or not there: written next to their place, then renamed into it.

The unfinished file has a hidden name that ends in ``UNFINISHED``, and its writer holds a lock on it
that the kernel ends with the process. So any process can tell what a killed writer left from what
is being written.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL
from pathlib import Path
from typing import BinaryIO

from spp_cli.errors import ConfigError

__all__ = ["UNFINISHED", "UnfinishedFile", "new_folder", "remove_leftovers", "sync"]

UNFINISHED = ".writing"
_GRACE = 0.5  # seconds; to look whether a file is left over takes far less


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


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to fill, ``target.partial``, that then becomes ``target`` in one rename.

    All of it is on the disk by then. What a killed process left of it is removed first; an error
    leaves nothing.

    Raises:
        ConfigError: ``target`` is there already, or another process is making it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent)
    mark = target.with_name(f".{target.name}{UNFINISHED}")
    partial = target.with_name(f"{target.name}.partial")
    try:
        stream = _open_locked(mark, wait=False)
    except BlockingIOError:
        raise ConfigError(
            f"another process is making {target}. Wait for it to end, or name another folder"
        ) from None
    with stream:
        try:
            if os.path.lexists(target):
                raise ConfigError(f"{target} is there already. Name a folder that is not")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            for path in (partial, *partial.rglob("*")):
                sync(path)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):
                mark.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or the list of what is in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _open_locked(path: Path, *, wait: bool = True) -> BinaryIO:
    """Open a file to write, and lock it; ``BlockingIOError`` without ``wait`` if another has."""
    deadline = time.monotonic() + _GRACE
    while True:
        stream = path.open("ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            stream.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
            continue
        except OSError:  # a file system without locks: nothing is taken for left over there
            pass
        with suppress(FileNotFoundError):
            status = os.fstat(stream.fileno())
            if os.path.samestat(status, path.stat()):
                if status.st_size:
                    stream.truncate(0)
                return stream
        stream.close()  # somebody took it for left over before it was locked
