"""What became of the points of a sweep, on disk: ``<workspace>/.sweeps/<sweep>/points.json``."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from spp_cli.errors import WorkspaceError
from spp_cli.fingerprint import write_json
from spp_cli.reading import read_json
from spp_cli.workspace import Run, Workspace

__all__ = ["Record", "State", "has_plain_names", "other_file", "sweep_runs"]

_POINTS = "points.json"
_FORMAT = 2
_PLAIN = 1  # of an earlier version: the names of points do not begin with that of the sweep
State = Literal["waiting", "running", "done", "failed"]


@dataclass
class Outcome:
    """What became of a point; ``seconds`` are those of all its processes so far."""

    state: State = "waiting"
    error: str = ""
    seconds: float = 0.0
    values: dict[str, Any] = field(default_factory=dict)


class Record:
    """The outcomes of a sweep's points by name, in their order, kept on disk at each change."""

    def __init__(self, folder: Path, file: str, values: dict[str, dict[str, Any]]) -> None:
        self.folder = folder
        self._file = file
        self._format = _PLAIN if _format(folder) == _PLAIN else _FORMAT
        earlier = self._read()
        self.outcomes = {
            name: Outcome(seconds=earlier.get(name, 0.0), values=own)
            for name, own in values.items()
        }

    def set(self, name: str, state: State, *, error: str = "", seconds: float = 0.0) -> None:
        """Note a change, and add ``seconds`` to those of the point."""
        outcome = self.outcomes[name]
        outcome.state, outcome.error = state, error
        outcome.seconds += seconds
        points = {key: asdict(value) for key, value in self.outcomes.items()}
        document = {"format": self._format, "file": self._file, "points": points}
        write_json(self.folder / _POINTS, document)

    def failed(self) -> dict[str, str]:
        """Return why points failed, by name."""
        found = self.outcomes.items()
        return {name: outcome.error for name, outcome in found if outcome.state == "failed"}

    def _read(self) -> dict[str, float]:
        """Return the seconds on record; none if it is not there or cannot be read."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            points = read_json(self.folder / _POINTS)["points"]
            return {name: float(point["seconds"]) for name, point in points.items()}
        return {}


def has_plain_names(workspace: Workspace, name: str) -> bool:
    """Whether a sweep was begun when the names of its runs did not begin with its own."""
    return _format(workspace.sweeps / name) == _PLAIN


def other_file(workspace: Workspace, name: str, file: str) -> str:
    """Return the file of another sweep that has this name; "" if there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        recorded = Path(read_json(workspace.sweeps / name / _POINTS)["file"])
        if recorded.exists() and not recorded.samefile(file):
            return str(recorded)
    return ""


def _format(folder: Path) -> int | None:
    """Return the format of a sweep's record; None if there is none, or it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(read_json(folder / _POINTS)["format"])
    return None


def sweep_runs(workspace: Workspace, name: str) -> list[Run]:
    """Return the runs of a sweep's points that have begun, in the order of its file.

    Raises:
        WorkspaceError: none has; or the workspace has no record of this sweep, with the names of
            those it has.
    """
    path = workspace.sweeps / name / _POINTS
    try:
        points = read_json(path)["points"]
    except (OSError, ValueError, KeyError, TypeError):
        found = sorted(other.parent.name for other in workspace.sweeps.glob(f"*/{_POINTS}"))
        known = ", ".join(found) or "none"
        raise WorkspaceError(
            f"{workspace.root} has no sweep {name}. Sweeps there: {known}"
        ) from None
    begun = [run for run in map(workspace.run, points) if run.exists()]
    if not begun:
        raise WorkspaceError(f"sweep {name} has not begun any run yet. Run it: spp sweep")
    return begun
