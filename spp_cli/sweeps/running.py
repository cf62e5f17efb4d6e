"""The points of a sweep, run: so many at once, each to its end, whatever becomes of the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from spp_cli.locking import exclusive_lock
from spp_cli.pipeline import up_to_date
from spp_cli.reporting.point_table import PointRow
from spp_cli.status import run_status
from spp_cli.sweeps.jobs import Job, end_all, environment
from spp_cli.sweeps.record import Record, State
from spp_cli.sweeps.sweep import Point, Sweep
from spp_cli.workspace import Workspace

__all__ = ["run_points"]

Show = Callable[[Sequence[PointRow]], None]
_TICK = 0.25  # seconds between looks at the processes and their progress


def run_points(sweep: Sweep, show: Show, *, jobs: int, devices: Sequence[str]) -> Record:
    """Run what is not up to date, ``jobs`` points at once, and return what became of each.

    A point that fails is on record and the others go on. Of points with the same pruned model one
    prunes, and the others wait until they can link it. When this ends, by Ctrl-C too, no process
    of it is left.

    Raises:
        RunInUse: the sweep is running already.
    """
    workspace = Workspace(sweep.workspace)
    folder = workspace.sweeps / sweep.name
    with exclusive_lock(folder / ".lock", "sweep", of="sweep"):
        file = str(Path(sweep.file).resolve())  # so that another of the name is known for one
        record = Record(folder, file, {point.name: point.values for point in sweep.points})
        _Running(sweep, workspace, record, show, jobs, devices).to_the_end()
    return record


class _Running:
    def __init__(
        self,
        sweep: Sweep,
        workspace: Workspace,
        record: Record,
        show: Show,
        jobs: int,
        devices: Sequence[str],
    ) -> None:
        self._points = sweep.points
        self._workspace, self._record, self._show = workspace, record, show
        self._jobs, self._devices = jobs, devices
        self._pruned_as = {point.name: point.pruned_as() for point in sweep.points}
        self._waiting = list(sweep.points)
        self._active: dict[int, Job] = {}  # by slot
        self._rows: dict[str, PointRow] = {}

    def to_the_end(self) -> None:
        for point in self._points:
            if up_to_date(point.stages, point.config, run=point.name):
                self._waiting.remove(point)
                self._record.set(point.name, "done")
            self._rows[point.name] = self._row(point)
        try:
            while self._waiting or self._active:
                self._collect()
                self._start()
                for job in self._active.values():
                    self._rows[job.point.name] = self._row_of_job(job)
                self._show(list(self._rows.values()))
                time.sleep(_TICK)
        finally:
            end_all(list(self._active.values()))
            for job in self._active.values():
                self._record.set(job.point.name, "waiting", seconds=job.seconds)
        self._show(list(self._rows.values()))

    def _collect(self) -> None:
        """Put on record what became of the processes that have ended."""
        for slot, job in list(self._active.items()):
            if job.has_ended():
                del self._active[slot]
                problem = job.problem()
                state: State = "failed" if problem else "done"
                self._record.set(job.point.name, state, error=problem, seconds=job.seconds)
                self._rows[job.point.name] = self._row(job.point)

    def _start(self) -> None:
        """Give every free slot the first point that may start."""
        for slot in set(range(self._jobs)) - set(self._active):
            if point := next(filter(self._may_start, self._waiting), None):
                self._waiting.remove(point)
                variables = environment(slot, self._jobs, self._devices)
                self._active[slot] = Job(point, self._record.folder, variables)
                self._record.set(point.name, "running")

    def _may_start(self, point: Point) -> bool:
        """Whether no other process is at work on its run, nor on the model that it would prune."""
        key = self._pruned_as[point.name]
        alike = [
            job.point for job in self._active.values() if self._pruned_as[job.point.name] == key
        ]
        is_free = not self._workspace.run(point.name).holder()
        return is_free and all(map(self._is_pruned, alike))

    def _is_pruned(self, point: Point) -> bool:
        return up_to_date(("prune",), point.config, run=point.name)

    def _row(self, point: Point) -> PointRow:
        """Return the row of a point at which no process is at work."""
        outcome = self._record.outcomes[point.name]
        row = PointRow(point.name, outcome.state, seconds=outcome.seconds, error=outcome.error)
        if outcome.state == "done":
            perplexity = run_status(self._workspace.run(point.name))["perplexity"]
            if perplexity:
                row.measure, row.perplexity = (
                    perplexity["name"],
                    [*perplexity["stages"].values()][-1],
                )
        return row

    def _row_of_job(self, job: Job) -> PointRow:
        name = job.point.name
        run = self._workspace.run(name)
        stage = run.holder().get("stage") or ""
        progress = run.progress(stage) if stage else None
        seconds = self._record.outcomes[name].seconds + job.seconds
        return PointRow(name, "running", stage=stage, progress=progress, seconds=seconds)
