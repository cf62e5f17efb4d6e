"""A lock on a run, between processes: who holds it is told, and a killed holder lets go of it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from spp_cli.errors import WorkspaceError
from spp_cli.fingerprint import disk_errors
from spp_cli.reading import parse_json

_GRACE = 0.5  # seconds; a look at a lock, or a holder's first write, takes far less
_open_locks: set[int] = set()


class RunInUse(WorkspaceError):
    """Another process works on the run."""


@contextmanager
def exclusive_lock(
    path: Path, stage: str, *, of: str = "run", wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock file ``path``, made with its folder if need be, and note ``stage`` in it.

    The folder has the name of what is locked, and ``of`` says in a word what that is. With ``wait``
    a lock that another holds is told to it, and waited for.

    The kernel keeps the lock (flock), so it ends with the process, however that ends; the file
    stays, because another process may already have it open.

    Raises:
        RunInUse: another process holds it; the message names that process and its stage.
        WorkspaceError: the file cannot be made or written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    _open_locks.add(descriptor)
    try:
        with disk_errors(path):
            _acquire(descriptor, f"{of} {path.parent.name}", of, wait)
            _write_holder(descriptor, stage)
        yield
    finally:
        if descriptor in _open_locks:  # not in a forked child, which closed it at its birth
            _open_locks.remove(descriptor)
            os.close(descriptor)


def lock_holder(path: Path) -> dict[str, Any]:
    """Return pid, host, stage and start ("since") of the lock's holder; empty if nobody holds it.

    Only the stage, None, is returned of a holder that has not yet written who it is.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for
    except OSError:
        return {}
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(descriptor) or {"stage": None}
    except OSError:
        return {}
    finally:
        os.close(descriptor)
    return {}


def _acquire(descriptor: int, locked: str, of: str, wait: Callable[[str], None] | None) -> None:
    deadline = time.monotonic() + _GRACE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                who = _describe(_read_holder(descriptor))
                if wait:
                    wait(f"waiting for {who}, which has {locked}")
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    return
                raise RunInUse(
                    f"{locked} is in use by {who}. Wait for it, or choose another "
                    f"{'--run' if of == 'run' else '--workspace'}"
                ) from None
            time.sleep(0.02)


def _write_holder(descriptor: int, stage: str) -> None:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "stage": stage, "since": since}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _read_holder(descriptor: int) -> dict[str, Any]:
    try:
        holder = parse_json(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _describe(holder: dict[str, Any]) -> str:
    """Return "pid 123 on host h (spp finetune since 10:12)", with the date if that is not today."""
    try:
        since = datetime.fromisoformat(holder["since"]).astimezone()
        today = since.date() == datetime.now().astimezone().date()
        when = since.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")
        return f"pid {holder['pid']} on host {holder['host']} (spp {holder['stage']} since {when})"
    except (KeyError, TypeError, ValueError):
        return "another process"


def _let_go() -> None:
    """Close the locks in a forked child: a worker that outlives its killed parent holds nothing."""
    for descriptor in _open_locks:
        os.close(descriptor)
    _open_locks.clear()


os.register_at_fork(after_in_child=_let_go)
