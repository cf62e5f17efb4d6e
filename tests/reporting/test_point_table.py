"""What is seen of a sweep while it runs."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from spp_cli.reporting.point_table import PointRow, point_table, points_shown
from spp_cli.reporting.terminal import Lines, Quiet

STATES = st.sampled_from(["waiting", "running", "done", "failed"])


def drawn(rows: list[PointRow], height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    console.print(point_table(rows, height))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_point_is_one_line_with_its_stage_and_what_came_of_it():
    rows = [
        PointRow("wanda-0.5", "done", measure="perplexity@256", perplexity=22.413, seconds=90),
        PointRow("wanda-0.6", "failed", error="out of memory", seconds=6),
        PointRow("wanda-2of4", "running", "prune", {"done": 3, "total": 8, "unit": "blocks"}),
        PointRow("wanda-2of8", "waiting"),
    ]
    head, *lines, summary = drawn(rows, 30)
    assert head.split() == ["point", "state", "stage", "progress", "perplexity@256", "minutes"]
    assert [line.split() for line in lines] == [
        ["wanda-0.5", "done", "22.41", "1.5"],
        ["wanda-0.6", "failed", "out", "of", "memory", "0.1"],
        ["wanda-2of4", "running", "prune", "3/8", "blocks"],
        ["wanda-2of8", "waiting"],
    ]
    assert summary == "4 points: 1 waiting, 1 running, 1 done, 1 failed"


@given(st.lists(STATES, min_size=1, max_size=40), st.integers(-3, 40))
def test_the_table_fits_and_shows_the_first_point_that_is_not_ended(states, height):
    rows = [PointRow(f"p{number}", state) for number, state in enumerate(states)]
    _, *lines, summary = drawn(rows, height)
    assert len(lines) == min(len(rows), max(height, 1))
    assert summary.startswith(f"{len(rows)} point")
    is_open = [row.point for row in rows if row.state in ("waiting", "running")]
    if is_open and height >= 3:
        assert is_open[0] in [line.split()[0] for line in lines]


def test_elsewhere_a_line_tells_each_stage_and_each_end_once():
    file = io.StringIO()
    rows = [PointRow("a", "done"), PointRow("b", "waiting"), PointRow("c", "waiting")]
    with points_shown(Lines(Console(file=file, width=100))) as show:
        show(rows)
        rows[1] = PointRow("b", "running")
        show(rows)
        rows[1] = PointRow("b", "running", "prune", {"done": 1, "total": 2, "unit": "blocks"})
        show(rows)
        show(rows)
        rows[1] = PointRow("b", "done", measure="perplexity@32", perplexity=5.0, seconds=65)
        rows[2] = PointRow("c", "failed", error="no room")
        show(rows)
        show(rows)
    assert file.getvalue().splitlines() == [
        "3 points: 2 waiting, 1 done",
        "b: prune",
        "b: done in 1 min 05 s, perplexity@32 5.00 (3 of 3)",
        "warning: c: failed: no room",
    ]


def test_a_quiet_sweep_tells_of_failures_alone():
    file = io.StringIO()
    with points_shown(Quiet(Console(file=file, width=100))) as show:
        show([PointRow("a", "done"), PointRow("b", "failed", error="no room")])
    assert file.getvalue().splitlines() == ["warning: b: failed: no room"]
