"""How long work tells how far it is: a protocol, so that no layer below knows the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Reporter", "Silent", "Task"]


class Task(Protocol):
    """One bar: so much of a known total is done."""

    def advance(self, amount: float = 1, detail: str = "") -> None:
        """Count ``amount`` more as done; ``detail``, say a layer's name, stands beside the bar."""


class Reporter(Protocol):
    """Where progress and remarks go: a terminal, plain lines, or nowhere."""

    def task(self, name: str, total: float, unit: str = "") -> AbstractContextManager[Task]:
        """Open a bar of ``total`` units, e.g. blocks or tokens; it closes with the context."""

    def say(self, text: str) -> None:
        """Show one line that is worth keeping on the screen."""

    def warn(self, text: str) -> None:
        """Show one line on which the user can act."""


class Silent:
    """A reporter that shows nothing, for library use and tests; it keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    @contextmanager
    def task(self, name: str, total: float, unit: str = "") -> Iterator[Task]:
        yield _NoTask()

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class _NoTask:
    def advance(self, amount: float = 1, detail: str = "") -> None:
        pass
