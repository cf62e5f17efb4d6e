"""The points of a sweep while they run: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from spp_cli.progress import Reporter
from spp_cli.reporting.terminal import Bars, duration

__all__ = ["PointRow", "point_table", "points_shown"]

_STYLES = {"waiting": "dim", "running": "bold", "done": "green", "failed": "red"}
_AROUND = 5  # lines of a terminal that the head of the table, its foot and the prompt take


@dataclass
class PointRow:
    """One point: its state, the stage it is in and how far that is, and what came of it.

    ``progress`` has done, total and unit; ``measure`` is the name of its ``perplexity``.
    """

    point: str
    state: str
    stage: str = ""
    progress: Mapping[str, Any] | None = None
    measure: str = "perplexity"
    perplexity: float | None = None
    seconds: float = 0.0
    error: str = ""


@contextmanager
def points_shown(reporter: Reporter) -> Iterator[Callable[[Sequence[PointRow]], None]]:
    """Yield what shows all rows anew, whenever one of them has changed."""
    if not isinstance(reporter, Bars):
        yield _Lines(reporter).show
        return
    console = reporter.console
    with Live(console=console, redirect_stdout=False, redirect_stderr=False) as live:

        def show(rows: Sequence[PointRow]) -> None:
            live.update(point_table(rows, console.height - _AROUND))

        yield show


def point_table(rows: Sequence[PointRow], height: int) -> Table:
    """Return the table of ``rows``; of more than ``height`` those around the first that is open."""
    measures = {row.measure for row in rows if row.perplexity is not None}
    title = measures.pop() if len(measures) == 1 else "perplexity"
    table = Table(box=None, pad_edge=False, caption=_summary(rows), caption_justify="left")
    for name in ("point", "state", "stage"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("progress", title, "minutes"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _in_view(rows, max(height, 1)):
        table.add_row(
            row.point,
            Text(row.state, style=_STYLES[row.state]),
            Text(row.error or row.stage, style=_STYLES["failed"] if row.error else ""),
            _progress(row.progress),
            "" if row.perplexity is None else f"{row.perplexity:.2f}",
            f"{row.seconds / 60:.1f}" if row.seconds else "",
        )
    return table


def _in_view(rows: Sequence[PointRow], height: int) -> Sequence[PointRow]:
    is_open = [row.state in ("running", "waiting") for row in rows]
    first = is_open.index(True) if True in is_open else len(rows)
    start = max(0, min(first - 2, len(rows) - height))  # two that are done, for the context
    return rows[start : start + height]


def _progress(progress: Mapping[str, Any] | None) -> str:
    if not progress:
        return ""
    return f"{progress['done']}/{progress['total']} {progress.get('unit', '')}".rstrip()


def _summary(rows: Sequence[PointRow]) -> str:
    counts = Counter(row.state for row in rows)
    told = ", ".join(f"{counts[state]} {state}" for state in _STYLES if counts[state])
    return f"{len(rows)} points: {told}"


class _Lines:
    """Says a line when a point begins a stage, or ends."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._told: dict[str, tuple[str, str]] = {}

    def show(self, rows: Sequence[PointRow]) -> None:
        """Say what has changed since the rows were shown before."""
        if not self._told:
            self._reporter.say(_summary(rows))
            self._told = {row.point: ("waiting", "") for row in rows}
            self._told |= {row.point: ("done", "") for row in rows if row.state == "done"}
        for row in rows:
            now = (row.state, row.stage)
            if now == self._told[row.point] or (row.state == "running" and not row.stage):
                continue
            self._told[row.point] = now
            if row.state == "failed":
                self._reporter.warn(f"{row.point}: failed: {row.error}")
            elif row.state == "running":
                self._reporter.say(f"{row.point}: {row.stage}")
            elif row.state == "done":
                known = row.perplexity is not None
                measured = f", {row.measure} {row.perplexity:.2f}" if known else ""
                ended = sum(other.state in ("done", "failed") for other in rows)
                took = duration(row.seconds)
                of = f"{ended} of {len(rows)}"
                self._reporter.say(f"{row.point}: done in {took}{measured} ({of})")
