"""What is on record of a sweep: outcomes, times over all attempts, and which runs are its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spp_cli.cli import app
from spp_cli.errors import WorkspaceError
from spp_cli.sweeps.record import Record, sweep_runs
from spp_cli.workspace import Workspace

POINTS: dict[str, dict[str, object]] = {"a": {"seed": 1}, "wanda": {"seed": 2}}


def opened(workspace: Workspace, name: str = "many") -> Record:
    folder = workspace.sweeps / name
    folder.mkdir(parents=True, exist_ok=True)
    return Record(folder, "many.yaml", POINTS)


def test_what_became_of_a_point_is_on_disk_at_once_and_its_time_adds_up(tmp_path):
    workspace = Workspace(tmp_path)
    record = opened(workspace)
    record.set("a", "running")
    record.set("a", "failed", error="no room", seconds=60.0)
    assert record.failed() == {"a": "no room"}
    document = json.loads((workspace.sweeps / "many" / "points.json").read_bytes())
    assert document["file"] == "many.yaml"
    assert document["points"]["a"] == {
        **{"state": "failed", "error": "no room", "seconds": 60.0, "values": {"seed": 1}}
    }
    again = opened(workspace)
    assert again.outcomes["a"].state == "waiting"  # a failed point is tried again
    again.set("a", "done", seconds=30.0)
    assert (again.outcomes["a"].seconds, again.failed()) == (90.0, {})


@pytest.mark.parametrize("spoilt", ["", "[]", '{"points": {"a": null}}', "{"])
def test_a_record_that_cannot_be_read_costs_the_times_alone(spoilt, tmp_path):
    opened(Workspace(tmp_path)).set("a", "done", seconds=5.0)
    (tmp_path / ".sweeps/many/points.json").write_text(spoilt)
    assert opened(Workspace(tmp_path)).outcomes["a"].seconds == 0.0


def test_the_runs_of_a_sweep_are_those_that_have_begun(side_by_side):
    opened(side_by_side).set("a", "failed", error="no room")
    assert [run.name for run in sweep_runs(side_by_side, "many")] == ["wanda"]
    with pytest.raises(WorkspaceError, match=r"has no sweep mny\. Sweeps there: .*many"):
        sweep_runs(side_by_side, "mny")
    (side_by_side.sweeps / "idle").mkdir()
    (side_by_side.sweeps / "idle/points.json").write_text('{"points": {"a": {}}}')
    with pytest.raises(WorkspaceError, match="sweep idle has not begun any run yet"):
        sweep_runs(side_by_side, "idle")


def test_compare_and_report_take_the_runs_of_a_sweep(side_by_side, tmp_path: Path):
    opened(side_by_side).set("a", "failed", error="no room")
    place = ["--sweep", "many", "--workspace", str(side_by_side.root)]
    compared = CliRunner().invoke(app, ["compare", *place, "--json"])
    assert {row["run"] for row in json.loads(compared.stdout)["rows"]} == {None, "wanda"}
    page = ["--no-samples", "--output", str(tmp_path / "page.html"), "--json"]
    assert json.loads(CliRunner().invoke(app, ["report", *place, *page]).stdout)["runs"] == [
        "wanda"
    ]
    both = CliRunner().invoke(app, ["compare", "wanda", *place])
    assert both.exit_code == 2
    assert both.stderr == (
        "error: --sweep names its runs by itself. Leave it or the names of runs out\n"
    )
