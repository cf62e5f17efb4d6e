"""Processes side by side, one a point, each with a GPU of its own where there are several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

from spp_cli.errors import ConfigError
from spp_cli.fingerprint import disk_errors, write_text
from spp_cli.reading import read_json
from spp_cli.settings import dump_yaml
from spp_cli.sweeps.sweep import Point

__all__ = ["Job", "check_devices", "end_all", "environment", "visible_devices"]

_DEVICES = "CUDA_VISIBLE_DEVICES"
_PATIENCE = 20.0  # seconds for a process to end by itself, with a start of Python before that


class Job:
    """The process of one point; what it reads and says is in ``folder`` by the point's name.

    ``<point>.yaml`` is its configuration; ``<point>.answer`` and ``<point>.log`` are what it says.
    """

    def __init__(self, point: Point, folder: Path, variables: Mapping[str, str]) -> None:
        self.point = point
        self.started = time.monotonic()
        self._answer, self._log = (folder / f"{point.name}.{end}" for end in ("answer", "log"))
        config = folder / f"{point.name}.yaml"
        write_text(config, dump_yaml(point.config))
        command = [sys.executable, "-m", "spp_cli.sweeps.job", "run", str(config)]
        command += ["--stages", ",".join(point.stages), "--json"]
        with disk_errors(folder), self._answer.open("wb") as out, self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=log,
                env=variables,
                start_new_session=True,  # Ctrl-C reaches the sweep, which ends each in its turn
            )

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.started

    def has_ended(self) -> bool:
        """Whether the process is over."""
        if self.process.poll() is None:
            return False
        self.close()
        return True

    def close(self) -> None:
        """Close the pipe to the process, which ends it as Ctrl-C does."""
        if self.process.stdin:
            self.process.stdin.close()

    def problem(self) -> str:
        """Return in one line why an ended process failed; "" if it did not."""
        code = self.process.returncode
        if code < 0:
            hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
            return f"killed by {signal.Signals(-code).name}{hint}. See {self._log}"
        if code == 0:
            return ""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return "; ".join(str(read_json(self._answer)["error"]).splitlines())
        return f"ended with exit code {code}. See {self._log}"


def end_all(jobs: Sequence[Job]) -> None:
    """Ask each process to end, and kill those that take long; none is left."""
    try:
        for job in jobs:
            job.close()
        deadline = time.monotonic() + _PATIENCE
        for job in jobs:
            with suppress(subprocess.TimeoutExpired):
                job.process.wait(max(0.0, deadline - time.monotonic()))
    finally:  # also on a second Ctrl-C
        for job in jobs:
            job.process.kill()
            job.process.wait()


def visible_devices() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (given := os.environ.get(_DEVICES)) is not None:
        names = (name.strip() for name in given.split(","))
        return list(takewhile(lambda name: name not in ("", "-1"), names))  # as CUDA reads it
    from torch import cuda  # not above: help must not wait for torch

    return list(map(str, range(cuda.device_count())))


def environment(slot: int, jobs: int, devices: Sequence[str]) -> dict[str, str]:
    """Return the variables of the process in ``slot`` of so many ``jobs`` at once.

    Each has a GPU of its own while they last; without any they share the cores of the CPU.
    """
    variables = dict(os.environ)
    if devices:
        variables[_DEVICES] = devices[slot % len(devices)]
    elif jobs > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        variables.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // jobs)))
    return variables


def check_devices(points: Sequence[Point], devices: Sequence[str]) -> None:
    """See that no point asks for a GPU by a number, where its process sees one GPU alone.

    Raises:
        ConfigError: one does.
    """
    for point in points:
        device = point.config.model.device
        if devices and device.startswith("cuda:"):
            raise ConfigError(
                f"{point.name}: model.device is {device}, and a sweep gives each process a GPU of "
                f"its own, of {', '.join(devices)}. Set cuda or auto; {_DEVICES} chooses GPUs"
            )
