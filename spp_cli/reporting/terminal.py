"""Progress on stderr: bars in a terminal, plain lines elsewhere, only warnings under --quiet."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

from spp_cli.foreign import one_line
from spp_cli.progress import Reporter, Task

__all__ = ["Bars", "Lines", "Quiet", "duration", "quieten_libraries", "reporter"]


def reporter(*, quiet: bool) -> Reporter:
    """Return what suits stderr as it is: a terminal, a file or a pipe."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if quiet:
        return Quiet(console)
    return Bars(console) if console.is_terminal else Lines(console)


class Quiet:
    """Shows warnings and nothing else."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def task(self, name: str, total: float, unit: str = "") -> Iterator[Task]:
        """Show nothing."""
        yield _Unseen()

    def say(self, text: str) -> None:
        """Show nothing."""

    def warn(self, text: str) -> None:
        """Show one line."""
        self.console.print(f"warning: {one_line(text)}", style="yellow", markup=False)


class _Unseen:
    def advance(self, amount: float = 1, detail: str = "") -> None:
        pass


class Lines(Quiet):
    """Shows plain lines: one when a task ends, and one every so many seconds before that."""

    def __init__(
        self, console: Console, every: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(console)
        self.every = every
        self.clock = clock

    @contextmanager
    def task(self, name: str, total: float, unit: str = "") -> Iterator[Task]:
        """Count a task; its last line says how long it took."""
        task = _LineTask(self, name, total, unit)
        yield task
        task.close()

    def say(self, text: str) -> None:
        """Show one line."""
        self.console.print(one_line(text), markup=False)


class _LineTask:
    def __init__(self, lines: Lines, name: str, total: float, unit: str) -> None:
        self._lines, self._name, self._total, self._unit = lines, name, total, unit
        self._done = 0.0
        self._began = self._shown = lines.clock()

    def advance(self, amount: float = 1, detail: str = "") -> None:
        self._done += amount
        now = self._lines.clock()
        if now - self._shown >= self._lines.every and self._done < self._total:
            self._shown = now
            parts = [self._amount(), detail]
            if self._done > 0:  # before, nobody knows how long it takes
                left = (now - self._began) * (self._total - self._done) / self._done
                speed = _speed(self._done / (now - self._began), self._unit)
                parts += [speed, f"{duration(left)} left"]
            self._lines.say(", ".join(filter(None, parts)))

    def close(self) -> None:
        took = duration(self._lines.clock() - self._began)
        self._lines.say(f"{self._amount()} in {took}")

    def _amount(self) -> str:
        return f"{self._name}: {self._done:,.0f}/{self._total:,.0f} {self._unit}".rstrip()


class Bars(Lines):
    """Shows a bar for every open task, the inner ones below the outer, and remarks above them."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress: Progress | None = None

    @contextmanager
    def task(self, name: str, total: float, unit: str = "") -> Iterator[Task]:
        """Open a bar, which goes when the task ends; what remains is a line with the time taken."""
        outermost = self._progress is None
        progress = self._progress = self._progress or _bars(self.console)
        began = time.monotonic()
        if outermost:
            progress.start()
        bar = progress.add_task(name, total=total, unit=unit, detail="")
        try:
            yield _BarTask(progress, bar)
            progress.remove_task(bar)
            if outermost:
                amount = f"{total:,.0f} {unit}".rstrip()
                self.say(f"{name}: {amount} in {duration(time.monotonic() - began)}")
        finally:
            if outermost:
                progress.stop()
                self._progress = None


class _BarTask:
    def __init__(self, progress: Progress, bar: TaskID) -> None:
        self._progress, self._bar = progress, bar

    def advance(self, amount: float = 1, detail: str = "") -> None:
        self._progress.update(self._bar, advance=amount, detail=one_line(detail))


def _bars(console: Console) -> Progress:
    def fixed() -> Column:
        return Column(no_wrap=True)

    amount = "{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=fixed()),
        BarColumn(bar_width=16, table_column=fixed()),
        TextColumn(amount, markup=False, table_column=fixed()),
        _SpeedColumn(table_column=fixed()),
        TimeElapsedColumn(table_column=fixed()),
        TextColumn("left", table_column=fixed()),
        TimeRemainingColumn(table_column=fixed()),
        _DetailColumn(),
        console=console,
        transient=True,
    )


class _DetailColumn(ProgressColumn):
    """The one column that gives way in a narrow terminal, so that a bar stays one line."""

    def render(self, task: RichTask) -> Text:
        return Text(task.fields["detail"], style="dim", no_wrap=True, overflow="ellipsis")


class _SpeedColumn(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        return Text(_speed(task.speed or 0.0, task.fields["unit"]))


def _speed(rate: float, unit: str) -> str:
    """Return "12 blocks/s", or "3.5 s/block" where it is slower than one a second."""
    if not unit or rate <= 0:
        return ""
    if rate < 1:
        return f"{1 / rate:.3g} s/{unit.removesuffix('s')}"
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.3g} {unit}/s"


def duration(seconds: float) -> str:
    """Return seconds as people say them: "3.2 s", "4 min 05 s", "2 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def quieten_libraries(*, debug: bool, quiet: bool) -> None:
    """Keep what libraries log and warn of off the screen; their download bars only in a terminal.

    To be called before they are imported. A setting of the user's own stands.
    """
    if debug:
        return
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
