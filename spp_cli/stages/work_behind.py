"""Waiting for the disk in a thread of its own, while the next block is worked on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["WorkBehind"]


class WorkBehind:
    """Does pieces of work one after the other, no more than one at a time; done at its end."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def do(self, *steps: Callable[[], object]) -> None:
        """Begin ``steps``, in order, once what was begun before is done.

        Raises:
            OSError: what was begun before has failed; ``steps`` are left undone. The last piece
                of work says so at the end of the ``with``.
        """
        self._wait()

        def work() -> None:
            for step in steps:
                step()

        self._last = self._thread.submit(work)

    def __enter__(self) -> WorkBehind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self._wait()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()
