"""One run and its stages: what there is, what is up to date, and the way to add to it.

<run>/<stage>/            a finished stage: manifest.json, config.yaml and its output
<run>/<stage>.partial/    in progress, with its fingerprint.json; resumed or replaced
    progress.json         how far it is: {"done": 17, "total": 32, "unit": "blocks"}
    .resume/              what only a resumed stage needs; not part of the result
<run>/<stage>.old/        only while a result is being replaced
<run>/.lock               who works on the run
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from spp_cli.atomic_files import UNFINISHED, remove_leftovers
from spp_cli.errors import WorkspaceError
from spp_cli.fingerprint import (
    Fingerprint,
    Manifest,
    changed_inputs,
    differences,
    digest_of,
    disk_errors,
    file_digests,
    is_as_sealed,
    remember_as,
    sealed,
    versions,
    write_json,
    write_text,
)
from spp_cli.locking import exclusive_lock, lock_holder
from spp_cli.publishing import (
    CONFIG,
    FINGERPRINT,
    MANIFEST,
    PROGRESS,
    damage,
    holds_work,
    is_half_replaced,
    is_result,
    keep_only,
    link_output,
    partial_of,
    put_in_place,
    recover,
    remove,
    sync_output,
)
from spp_cli.reading import read_json

STAGES = ("prune", "finetune", "merge", "eval")
State = Literal["missing", "partial", "running", "done", "stale", "damaged"]

RESULTS = {
    "prune": "a pruned model",
    "finetune": "a finetuned model",
    "merge": "a merged model",
    "eval": "an evaluation",
}


class Run:
    """A handle on one run: what it has, and the way to add to it."""

    def __init__(self, folder: Path, digest_cache: Path | None = None) -> None:
        self.folder = folder
        self.name = folder.name
        self._digest_cache = digest_cache
        self._locked = False

    def exists(self) -> bool:
        """Whether any stage was begun."""
        return any(map(os.path.lexists, self._stage_folders()))

    def last_activity(self) -> float:
        """When the run last changed, in seconds since the epoch."""
        times = [0.0]
        for path in (self.folder, self.folder / ".lock", *self._stage_folders()):
            with suppress(OSError):  # not there, or replaced at this moment
                times.append(path.stat().st_mtime)
        return max(times)

    def is_half_replaced(self) -> bool:
        """Whether a kill left a result finished but not in its place; the next lock mends that."""
        return any(map(is_half_replaced, self._results()))

    def _results(self) -> list[Path]:
        return [self.folder / stage for stage in STAGES]

    def _stage_folders(self) -> list[Path]:
        return [*self._results(), *map(partial_of, self._results())]

    def stage(self, stage: str) -> Path | None:
        """Return the folder of a finished stage, stale or not; None if there is none."""
        folder = self.folder / stage
        return folder if os.path.isfile(folder / MANIFEST) else None

    def manifest(self, stage: str) -> Manifest | None:
        """Return the record of a finished stage; None if there is none.

        Raises:
            WorkspaceError: a folder is there, but its record is missing or corrupt, or a file of
                its output is missing or has another size than on record.
        """
        folder = self.folder / stage
        if not os.path.lexists(folder):
            return None
        try:
            record = read_json(folder / MANIFEST)
            manifest = Manifest.model_validate(record)
            problem = damage(folder, manifest.files)
            if not is_as_sealed(record):
                problem = f"{folder / MANIFEST} has changed since it was written"
            if stage == "eval" and not problem:  # so small that it is read each time
                problem = self._change(manifest)
            if manifest.stage != stage:
                problem = f"{folder / MANIFEST} is that of a {manifest.stage}"
        except (OSError, ValueError) as error:
            how = "missing" if isinstance(error, FileNotFoundError) else "corrupt"
            problem = f"{folder / MANIFEST} is {how}"
        if problem:
            raise self._distrust(stage, problem)
        return manifest

    def check_files(self, stage: str) -> None:
        """Read the output of a finished stage, as far as later stages do, unless it is known.

        Raises:
            WorkspaceError: a file is not as the stage has left it.
        """
        manifest = self.manifest(stage)
        if manifest and (problem := self._change(manifest)):
            raise self._distrust(stage, problem)

    def _change(self, manifest: Manifest) -> str | None:
        """Return what is wrong with the first file that is not as it was; None if all are."""
        folder = self.folder / manifest.stage
        found = file_digests(folder, filter(is_result, manifest.files), self._digest_cache)
        if digest_of(found) == manifest.output_digest:
            return None
        changed = [name for name in found if manifest.digests.get(name, "") != found[name]]
        named = folder / changed[0] if manifest.digests and changed else folder
        return f"{named} has changed since: its digest is not the one on record"

    def _distrust(self, stage: str, problem: str) -> WorkspaceError:
        return WorkspaceError(
            f"{problem}, so the {stage} of run {self.name} cannot be trusted. "
            f"Make it again: spp {stage} --run {self.name} --force"
        )

    def intact_manifest(self, stage: str) -> Manifest | None:
        """Return the record of a finished stage; None if there is none, or it is damaged."""
        with suppress(WorkspaceError):
            return self.manifest(stage)
        return None

    def state(self, stage: str) -> State:
        """Return how far a stage is; "stale": what it read was made anew since, or is itself stale.

        An earlier stage that is gone makes nothing stale: a merged model outlives its parts.
        """
        if self.holder().get("stage") == stage:
            return "running"
        try:
            manifest = self.manifest(stage)
        except WorkspaceError:
            return "damaged"
        if manifest is None:
            return "partial" if self._begun(stage) else "missing"
        return "stale" if self._stale_inputs(manifest) else "done"

    def progress(self, stage: str) -> dict[str, Any] | None:
        """Return how far a stage in progress said it is; None if it is not begun or did not say."""
        with suppress(OSError, ValueError):
            progress = read_json(partial_of(self.folder / stage) / PROGRESS)
            return progress if isinstance(progress, dict) else None
        return None

    def require(self, stage: str, *, for_stage: str) -> Path:
        """Return the folder of a finished stage that ``for_stage`` is to read.

        Raises:
            WorkspaceError: it is missing, damaged, or stale; with the command that makes it.
        """
        manifest = self.manifest(stage)
        if manifest is None:
            begun = self._begun(stage) is not None
            problem = (
                f"that of run {self.name} is unfinished" if begun else f"run {self.name} has none"
            )
        elif stale := self._stale_inputs(manifest):
            problem = f"that of run {self.name} is stale: its {stale[0]} has changed since"
        else:
            return self.folder / stage
        raise WorkspaceError(
            f"{for_stage} needs {RESULTS[stage]}, and {problem}. Run: spp {stage} --run {self.name}"
        )

    def _stale_inputs(self, manifest: Manifest) -> list[str]:
        """Return the earlier stages of which ``manifest`` saw another output than is there now."""
        stale = []
        for name in STAGES[: STAGES.index(manifest.stage)]:
            now = self.intact_manifest(name) if name in manifest.inputs else None
            if now and (now.output_digest != manifest.inputs[name] or self._stale_inputs(now)):
                stale.append(name)
        return stale

    def holder(self) -> dict[str, Any]:
        """Return pid, host, stage and start of the process that works on the run; empty if none."""
        return lock_holder(self.folder / ".lock")

    @contextmanager
    def lock(self, stage: str) -> Iterator[None]:
        """Keep every other process from this run while ``stage`` runs; a killed holder lets go.

        Raises:
            RunInUse: another process holds it; the message names that process and its stage.
            WorkspaceError: the run's folder cannot be created or written.
        """
        with exclusive_lock(self.folder / ".lock", stage):
            with disk_errors(self.folder):
                for result in filter(is_half_replaced, self._results()):
                    recover(result)
                self._remove_leftovers()
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def _remove_leftovers(self) -> None:
        remove_leftovers(self.folder, below=True)
        for folder in self.folder.glob(f".*{UNFINISHED}"):  # of a search that was killed
            remove(folder)

    def begin(
        self,
        stage: str,
        fingerprint: Fingerprint,
        config_yaml: str,
        *,
        force: bool = False,
        keep: str = "--run NAME",
    ) -> Path | None:
        """Return the folder to work in, within ``lock``; None if the finished stage is up to date.

        The folder still holds what an interrupted stage of the same fingerprint left there, unless
        ``force``. An earlier result stays where it is until ``publish``. A refusal says that the
        flags ``keep`` would keep both.

        Raises:
            WorkspaceError: the stage was finished or begun with other settings (all are shown), or
                is damaged, and not ``force``; or the disk is full or cannot be written.
        """
        assert self._locked
        if not force:
            done = self.manifest(stage)
            if done and fingerprint.is_met_by(done.made_from()):
                return None
            if done:
                self._refuse_other_settings(stage, done.made_from(), fingerprint, keep)
            elif begun := self.unfinished(stage):
                self._refuse_other_settings(stage, begun, fingerprint, keep, finished=False)
        partial = partial_of(self.folder / stage)
        begun = None if force else self._begun(stage)
        resumes = begun is not None and fingerprint.is_met_by(begun)
        with disk_errors(partial):
            if not resumes:
                # First its mark, so that a kill in between leaves nothing that looks resumable.
                if partial.is_dir():
                    remove(partial / FINGERPRINT)
                remove(partial)
                partial.mkdir()
            try:
                write_text(partial / CONFIG, config_yaml)
                write_json(partial / FINGERPRINT, fingerprint.record())
            except WorkspaceError:
                if not resumes:
                    remove(partial)
                raise
        return partial

    def _refuse_other_settings(
        self, stage: str, old: Fingerprint, new: Fingerprint, keep: str, *, finished: bool = True
    ) -> None:
        changed = differences(old, new)
        if not changed or stage == "eval":  # it adds to what is there: it has no settings to lose
            return
        there = RESULTS[stage] if finished else f"an unfinished {stage}"
        raise WorkspaceError(
            f"run {self.name} has {there} with other settings: {'; '.join(map(str, changed))}. "
            f"Add --force to {'replace' if finished else 'discard'} it, or {keep} to keep both"
        )

    def unfinished(self, stage: str) -> Fingerprint | None:
        """Return what the work of a stage in progress was begun with; None if there is no work."""
        return self._begun(stage) if holds_work(partial_of(self.folder / stage)) else None

    def outdated_work(self, stage: str, fingerprint: Fingerprint) -> list[str]:
        """Return which inputs have changed since the work of a stage in progress was begun."""
        begun = self.unfinished(stage)
        return changed_inputs(begun, fingerprint) if begun else []

    def _begun(self, stage: str) -> Fingerprint | None:
        """Return what a stage in progress was begun with; None if none can go on."""
        record = partial_of(self.folder / stage) / FINGERPRINT
        with suppress(OSError, ValueError):
            return TypeAdapter(Fingerprint).validate_json(record.read_bytes())
        return None

    def abandon(self, stage: str, *, for_good: bool = False) -> None:
        """Remove a stage in progress, within ``lock``, that failed before it had done any work.

        ``for_good``: whatever it had done, because to go on would only fail again.
        """
        assert self._locked
        partial = partial_of(self.folder / stage)
        if for_good or not holds_work(partial):
            with disk_errors(partial):
                remove(partial)

    def borrow(self, stage: str, lender: Run, fingerprint: Fingerprint) -> Manifest | None:
        """Make the result of ``lender``, of the same fingerprint, this run's; return its record.

        Within ``lock``, after ``begin``. The files are linked, so that they are on the disk once.
        None, and the stage in progress begins anew, if the lender's result goes at this moment.

        Raises:
            WorkspaceError: the disk is full or cannot be written.
        """
        assert self._locked
        partial, source = partial_of(self.folder / stage), lender.folder / stage
        lent = lender.intact_manifest(stage)
        if lent is None or not fingerprint.is_met_by(lent.made_from()):
            return None
        with disk_errors(partial):
            # First its mark: to go on with linked files would be to write into the lender's.
            for path in (partial / FINGERPRINT, *partial.iterdir()):
                if path.name != CONFIG:
                    remove(path)
            try:
                link_output(source, partial, lent.files)
            except FileNotFoundError:
                lent = None
            if lent is None or lender.intact_manifest(stage) != lent:
                config_yaml = (partial / CONFIG).read_text(encoding="utf-8")
                remove(partial)
                self.begin(stage, fingerprint, config_yaml, force=True)
                return None
            sync_output(partial, lent.files)
            asked = {"settings": dict(fingerprint.settings), "seed": fingerprint.seed}
            manifest = lent.model_copy(update={"borrowed_from": lender.name, **asked})
            write_json(partial / MANIFEST, sealed(manifest.model_dump()))
            put_in_place(self.folder / stage)
        return self.manifest(stage)

    def publish(
        self,
        stage: str,
        *,
        fingerprint: Fingerprint,
        output: Collection[str],
        metrics: dict[str, Any],
        mask_digest: str | None,
        seconds: float,
        peak_memory_bytes: int | None,
        started: str,
    ) -> Manifest:
        """Make the stage's ``.partial`` its result, within ``lock``; return its record.

        ``output`` are its files, relative to it; what else is there is removed. Every file is on
        the disk before the record is, and the record before the one rename.

        Raises:
            WorkspaceError: the disk is full or cannot be written; the earlier result is intact,
                and so is the stage in progress.
        """
        assert self._locked
        partial = partial_of(self.folder / stage)
        with disk_errors(partial):
            files = keep_only(partial, output)
            sync_output(partial, files)
            digests = file_digests(partial, filter(is_result, files), self._digest_cache)
            manifest = Manifest(
                stage=stage,
                format=fingerprint.format,
                fingerprint=fingerprint.digest,
                settings=dict(fingerprint.settings),
                inputs=dict(fingerprint.inputs),
                seed=fingerprint.seed,
                versions=versions(),
                platform=platform.platform(),
                mask_digest=mask_digest,
                output_digest=digest_of(digests),
                files=files,
                digests=digests,
                metrics=metrics,
                seconds=seconds,
                peak_memory_bytes=peak_memory_bytes,
                started=started,
                finished=datetime.now().astimezone().isoformat(timespec="seconds"),
            )
            write_json(partial / MANIFEST, sealed(manifest.model_dump()))
            put_in_place(self.folder / stage)
        remember_as(self._digest_cache, partial, self.folder / stage)
        published = self.manifest(stage)
        assert published
        return published
