"""Progress: bars in a terminal, lines elsewhere, nothing but warnings when quiet."""

from __future__ import annotations

import io
from itertools import count

import pytest
from rich.console import Console

from spp_cli.reporting.terminal import Bars, Lines, Quiet, duration


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, highlight=False)


def shown(by: Quiet) -> str:
    assert isinstance(by.console.file, io.StringIO)
    return by.console.file.getvalue()


def test_lines_come_every_so_many_seconds_and_at_the_end() -> None:
    seconds = count(0, 4)  # each look at the clock finds it 4 s later
    lines = Lines(console(), every=10, clock=lambda: float(next(seconds)))
    with lines.task("prune", 6, "blocks") as task:
        for block in range(6):
            task.advance(1, f"block {block}")
    assert shown(lines).splitlines() == [
        "prune: 3/6 blocks, block 2, 4 s/block, 12.0 s left",
        "prune: 6/6 blocks in 28.0 s",
    ]


def test_nobody_says_how_much_time_is_left_before_anything_is_done() -> None:
    seconds = count(0, 20)
    lines = Lines(console(), every=10, clock=lambda: float(next(seconds)))
    with lines.task("prune", 6, "blocks") as task:
        task.advance(0, "q_proj")
        task.advance(6)
    assert shown(lines).splitlines()[0] == "prune: 0/6 blocks, q_proj"


def test_a_task_that_fails_is_not_said_to_be_done() -> None:
    lines = Lines(console())
    with pytest.raises(ZeroDivisionError), lines.task("merge", 2):
        raise ZeroDivisionError
    assert shown(lines) == ""


def test_quiet_shows_warnings_alone() -> None:
    quiet = Quiet(console())
    with quiet.task("prune", 2, "blocks") as task:
        task.advance(2)
    quiet.say("calibration: 128 samples")
    quiet.warn("a test module is missing")
    assert shown(quiet) == "warning: a test module is missing\n"


def test_bars_may_stand_inside_each_other_and_leave_a_line_with_the_time() -> None:
    bars = Bars(console(terminal=True))
    with bars.task("prune", 2, "blocks") as outer, bars.task("calibration", 4, "samples") as inner:
        inner.advance(4)
        outer.advance(2, "[not markup]")
        bars.say("a remark")
    with bars.task("merge", 1):
        pass
    text = shown(bars)
    assert "a remark" in text
    assert "prune: 2 blocks in " in text
    assert "merge: 1 in " in text


def test_a_bar_that_fails_gives_the_terminal_back() -> None:
    bars = Bars(console(terminal=True))
    with pytest.raises(ZeroDivisionError), bars.task("prune", 2):
        raise ZeroDivisionError
    with bars.task("prune", 1):
        pass
    assert "prune: 1 in " in shown(bars)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.21, "3.2 s"),
        (59.94, "59.9 s"),
        (245, "4 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
