"""One process works on a run; a second one is told who does; a killed holder lets go."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spp_cli.errors import WorkspaceError
from spp_cli.locking import RunInUse, exclusive_lock, lock_holder

HOLDER = """
import os, sys, time
from pathlib import Path
from spp_cli.locking import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), "finetune"):
    worker = 0
    if sys.argv[2] == "with a worker":
        worker = os.fork()
        if not worker:
            time.sleep(60)
            os._exit(0)
    print(worker, flush=True)
    sys.stdin.read()
"""
Start = Callable[..., "tuple[subprocess.Popen[str], int]"]


@pytest.fixture
def lock_file(tmp_path: Path) -> Path:
    return tmp_path / "demo" / ".lock"


@pytest.fixture
def start_holder(lock_file: Path) -> Iterator[Start]:
    """Start another process that holds the lock; return it and the pid of its forked worker."""
    started: list[subprocess.Popen[str]] = []
    workers: list[int] = []

    def start(how: str = "alone") -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, "-c", HOLDER, str(lock_file), how]
        process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
        assert process.stdout
        started.append(process)
        workers.append(int(process.stdout.readline()))
        return process, workers[-1]

    yield start
    for worker in filter(None, workers):
        os.kill(worker, signal.SIGKILL)
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_is_told_who_holds_the_run(lock_file: Path, start_holder: Start) -> None:
    holder, _ = start_holder()
    with pytest.raises(RunInUse) as caught, exclusive_lock(lock_file, "merge"):
        pass
    assert re.fullmatch(
        rf"run demo is in use by pid {holder.pid} on host \S+ \(spp finetune since \d\d:\d\d\)\. "
        "Wait for it, or choose another --run",
        str(caught.value),
    )
    assert caught.value.exit_code == 2
    assert lock_holder(lock_file).items() >= {"pid": holder.pid, "stage": "finetune"}.items()


def test_who_waits_is_told_for_whom_and_has_the_lock_then(
    lock_file: Path, start_holder: Start
) -> None:
    holder, _ = start_holder()
    told = []

    def wait(text: str) -> None:
        told.append(text)
        holder.kill()

    with exclusive_lock(lock_file, "prune", of="folder", wait=wait):
        assert lock_holder(lock_file)["pid"] == os.getpid()
    assert told == [told[0]]
    assert told[0].startswith(f"waiting for pid {holder.pid} on host ")
    assert told[0].endswith(", which has folder demo")


def test_a_killed_holder_is_taken_over_without_a_word(lock_file: Path, start_holder: Start) -> None:
    holder, _ = start_holder()
    holder.kill()
    holder.wait()
    assert lock_holder(lock_file) == {}
    with exclusive_lock(lock_file, "merge"):
        assert lock_holder(lock_file)["pid"] == os.getpid()


def test_a_forked_worker_that_outlives_its_holder_holds_nothing(
    lock_file: Path, start_holder: Start
) -> None:
    holder, worker = start_holder("with a worker")
    holder.kill()
    holder.wait()
    os.kill(worker, 0)  # raises if the worker is gone
    with exclusive_lock(lock_file, "merge"):
        pass


def test_a_forked_worker_that_ends_leaves_the_lock_with_its_holder(lock_file: Path) -> None:
    with exclusive_lock(lock_file, "finetune"):
        if not (worker := os.fork()):
            os._exit(0)
        os.waitpid(worker, 0)
        with pytest.raises(RunInUse), exclusive_lock(lock_file, "merge"):
            pass


def test_a_forked_worker_that_leaves_the_lock_closes_no_file_of_its_own(lock_file: Path) -> None:
    lock = exclusive_lock(lock_file, "finetune")
    lock.__enter__()
    if not (worker := os.fork()):
        still_open = 0
        try:
            own = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
            lock.__exit__(None, None, None)
            still_open = len([os.fstat(descriptor) for descriptor in own])
        finally:
            os._exit(still_open)
    assert os.WEXITSTATUS(os.waitpid(worker, 0)[1]) == 20
    lock.__exit__(None, None, None)


def test_the_lock_is_free_after_its_holder_failed(lock_file: Path) -> None:
    with pytest.raises(KeyboardInterrupt), exclusive_lock(lock_file, "finetune"):
        raise KeyboardInterrupt
    assert lock_holder(lock_file) == {}
    with exclusive_lock(lock_file, "merge"):
        assert lock_holder(lock_file)["stage"] == "merge"


def test_a_refused_process_leaves_the_holders_name_in_place(
    lock_file: Path, start_holder: Start
) -> None:
    holder, _ = start_holder()
    for _ in range(2):
        with pytest.raises(RunInUse, match=f"pid {holder.pid}"), exclusive_lock(lock_file, "merge"):
            pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"since": 3}', "\x00\x00"])
def test_a_holder_that_cannot_be_read_is_another_process(lock_file: Path, text: str) -> None:
    with exclusive_lock(lock_file, "finetune"):
        lock_file.write_text(text)
        with pytest.raises(RunInUse, match="in use by another process"):
            exclusive_lock(lock_file, "merge").__enter__()


def test_a_look_at_the_lock_does_not_stop_a_process_that_wants_it(lock_file: Path) -> None:
    with exclusive_lock(lock_file, "prune"):
        pass
    if not (looker := os.fork()):
        while True:
            lock_holder(lock_file)
    try:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            with exclusive_lock(lock_file, "prune"):
                pass
    finally:
        os.kill(looker, signal.SIGKILL)
        os.waitpid(looker, 0)


def test_nobody_holds_a_lock_that_was_never_taken(lock_file: Path) -> None:
    assert lock_holder(lock_file) == {}
    assert not lock_file.parent.exists()


def test_a_pipe_in_place_of_the_lock_is_not_waited_for(lock_file: Path) -> None:
    lock_file.parent.mkdir()
    os.mkfifo(lock_file)
    assert lock_holder(lock_file) == {}
    with pytest.raises(WorkspaceError, match="cannot write"):
        exclusive_lock(lock_file, "prune").__enter__()


def test_a_file_in_place_of_the_run_is_one_clear_line(lock_file: Path) -> None:
    lock_file.parent.write_text("")
    with pytest.raises(WorkspaceError, match=r"cannot write .*Something else is in its place"):
        exclusive_lock(lock_file, "prune").__enter__()
