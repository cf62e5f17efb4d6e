"""The workspace: a folder with one folder for each run, and a cache of digests beside them.

<root>/<run>/             see ``spp_cli.runs``
<root>/.cache/digests.json
<root>/.calibration/      calibration tokens, one file for each way to draw them, for all runs
<root>/.statistics/       what is known of dense models by such tokens: one folder for each
<root>/.training/         rows to finetune on, as tokens, in the same way
<root>/.sweeps/           what became of the points of each sweep
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from spp_cli.atomic_files import remove_leftovers
from spp_cli.errors import WorkspaceError
from spp_cli.fingerprint import Fingerprint, disk_errors
from spp_cli.locking import RunInUse
from spp_cli.publishing import stage_around, stage_name
from spp_cli.runs import RESULTS, STAGES, Run, State

__all__ = ["STAGES", "Run", "RunInUse", "State", "Workspace"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Workspace:
    """The folder of all runs. Nothing is created before a stage starts.

    Raises:
        WorkspaceError: ``root`` is a file, or below one, or in the folder of a stage.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.expanduser(root))
        for folder in (self.root, *self.root.parents):
            if os.path.lexists(folder):
                _check_folder(folder, "the workspace", "--workspace")
                break
        if stage := stage_around(self.root):
            raise WorkspaceError(
                f"the workspace cannot be there: {root} is in the {stage_name(stage)} of run "
                f"{stage.parent.name}. Choose another --workspace"
            )

    @property
    def digest_cache(self) -> Path:
        """Where ``file_digest`` may remember what it read."""
        return self.root / ".cache" / "digests.json"

    @property
    def calibration(self) -> Path:
        """Where calibration tokens are kept. No run can have a name that begins with a dot."""
        return self.root / ".calibration"

    @property
    def statistics(self) -> Path:
        """Where what is known of dense models is kept."""
        return self.root / ".statistics"

    @property
    def training(self) -> Path:
        """Where the tokens of training rows are kept."""
        return self.root / ".training"

    @property
    def sweeps(self) -> Path:
        """Where each sweep has its records."""
        return self.root / ".sweeps"

    def remove_leftovers(self) -> None:
        """Remove what killed writers left next to the runs and in what all runs share."""
        remove_leftovers(self.root)
        stores = (self.calibration, self.statistics, self.training, self.sweeps)
        for folder in (self.digest_cache.parent, *stores):
            remove_leftovers(folder, below=True)

    def run(self, name: str) -> Run:
        """Return the run of this name, there or not yet; what a kill left half replaced is mended.

        Raises:
            WorkspaceError: the name has other signs than letters, digits, '.', '_', '-', or a file
                has its place.
        """
        if not _NAME.fullmatch(name):
            raise WorkspaceError(
                f"--run is {name!r}; must be letters, digits, '.', '_' and '-', "
                "beginning with a letter or digit"
            )
        run = Run(self.root / name, self.digest_cache)
        if os.path.lexists(run.folder):
            _check_folder(run.folder, f"run {name}", "--run")
        if run.is_half_replaced():
            with suppress(WorkspaceError), run.lock("recovery"):
                pass
        return run

    def existing_run(self, name: str) -> Run:
        """Return the run of this name.

        Raises:
            WorkspaceError: there is none; with the names of those that are there.
        """
        run = self.run(name)
        if not run.exists():
            names = ", ".join(found.name for found in self.runs()) or "none"
            raise WorkspaceError(f"{self.root} has no run {name}. Runs there: {names}")
        return run

    def runs(self) -> list[Run]:
        """Return the runs that have at least begun a stage, the latest activity first."""
        if not self.root.exists():
            return []
        with disk_errors(self.root, "read"):
            names = [folder.name for folder in self.root.iterdir() if folder.is_dir()]
        runs = [self.run(name) for name in names if _NAME.fullmatch(name)]
        return sorted(filter(Run.exists, runs), key=lambda run: (-run.last_activity(), run.name))

    def lender(self, stage: str, fingerprint: Fingerprint, borrower: Run) -> Run | None:
        """Return a run other than ``borrower`` that has this very result; None if there is none."""
        for run in self.runs():
            manifest = run.intact_manifest(stage) if run.name != borrower.name else None
            if manifest and fingerprint.is_met_by(manifest.made_from()):
                return run
        return None

    def latest(self, having: str | None = None) -> Run:
        """Return the run with the latest activity, of those that finished the stage ``having``.

        Raises:
            WorkspaceError: there is none; with the command that makes one.
        """
        for run in self.runs():
            if having is None or run.stage(having):
                return run
        missing = f"no run with {RESULTS[having]}" if having else "no run"
        raise WorkspaceError(f"{self.root} has {missing} yet. Run: spp {having or 'prune'}")


def _check_folder(path: Path, what: str, flag: str) -> None:
    if not path.is_dir():
        raise WorkspaceError(
            f"{what} cannot be there: {path} is not a folder. Move it, or choose another {flag}"
        )
