"""Run stages in a workspace: each in its folder, skipped if up to date, or refused."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from spp_cli import processes, yaml12
from spp_cli.config import ModelConfig, SppConfig
from spp_cli.errors import ConfigError, ModelError, NumericalError, SppError, WorkspaceError
from spp_cli.fingerprint import (
    Fingerprint,
    Manifest,
    folder_digest,
    full_disk_errors,
    leaves,
    listing_digest,
)
from spp_cli.memory import peak_memory
from spp_cli.progress import Reporter, Silent
from spp_cli.publishing import CONFIG
from spp_cli.settings import dump_yaml, read_yaml
from spp_cli.workspace import Run, Workspace

__all__ = [
    "StageOutcome",
    "calibrate",
    "dense_model",
    "digest_at_hand",
    "find_lr",
    "preview",
    "run_stages",
    "settings_fingerprint",
    "up_to_date",
]

MODULES = {
    "prune": "spp_cli.stages.prune",
    "finetune": "spp_cli.stages.finetune",
    "merge": "spp_cli.stages.merge",
    "eval": "spp_cli.stages.evaluate",
}
_TOGETHER = ("prune", "finetune")  # what several processes do together
_OTHER_SETTINGS = "With other settings add --force, which discards what is unfinished"
_LENT = ("prune",)  # what a run takes over from another that has made the very same
_NEEDS: dict[str, tuple[str, ...]] = {
    "prune": (),
    "finetune": ("prune",),
    "merge": ("prune", "finetune"),
    "eval": (),
}


@dataclass(frozen=True)
class StageOutcome:
    """What became of one stage: made anew, or skipped because it was up to date."""

    stage: str
    run: str
    folder: Path
    skipped: bool
    manifest: Manifest


def run_stages(
    stages: Sequence[str],
    config: SppConfig,
    reporter: Reporter,
    *,
    run: str | None,
    force: bool = False,
    source: str | None = None,
) -> list[StageOutcome]:
    """Run ``stages`` in order on the run named ``run`` (default: the config's name for it).

    ``source`` names the run whose earlier stages it takes over first, as links.

    Raises:
        SppError: whatever hinders a stage; those before it keep their results.
    """
    workspace = Workspace(config.workspace)
    handle = workspace.run(run or config.run_name())
    if processes.count() > 1:
        _meet(stages, config)
    if not processes.is_main():
        for stage in stages:
            _help_with(stage, config, workspace)
        processes.disconnect()
        return []
    workspace.remove_leftovers()
    outcomes = []
    for stage in stages:
        is_first = stage == stages[0]
        keep = "--run NAME"
        if is_first and _NEEDS[stage]:
            keep += f" --from-run {handle.name}"
        with processes.leading() as tell:
            if is_first:
                _check_ahead(stages, config, handle)
                if source:
                    _take_over(_NEEDS[stage], workspace.run(source), handle, reporter)
            outcomes.append(
                _run_stage(stage, config, workspace, handle, reporter, force, tell, keep)
            )
    processes.disconnect()
    return outcomes


def _check_ahead(stages: Sequence[str], config: SppConfig, run: Run) -> None:
    """Find before the first of several stages what a later one would be refused for.

    That files of text and rows are there, and tasks and packages; rows are not read yet.

    Raises:
        SppError: as the later stage.
    """
    later = stages[1:]
    if not later or up_to_date(stages[:-1], config, run=run.name):
        return
    from spp_cli.data.text import check_sources

    if "finetune" in later:
        data = config.finetune.data
        check_sources(data.source, "finetune.data.source")
        check_sources(data.validation_source or (), "finetune.data.validation_source")
        from spp_cli.training.arguments import check_reports

        check_reports(config.finetune.report_to)
    tasks = [name for name in config.eval.tasks if name != "perplexity"]
    if "eval" in later and "perplexity" in config.eval.tasks:
        check_sources(config.eval.perplexity.source, "eval.perplexity.source")
    if "eval" in later and tasks:
        from spp_cli.evaluation.harness import load_tasks

        load_tasks(tasks, config.eval)


def _take_over(stages: Sequence[str], source: Run, run: Run, reporter: Reporter) -> None:
    """Link the results of ``source`` into ``run``, but those that it has already.

    Raises:
        WorkspaceError: it has others, or the disk is full or cannot be written.
    """
    for stage in stages:
        with run.lock(stage):
            lent, own = source.manifest(stage), run.manifest(stage)
            if lent is None or (own and own.output_digest == lent.output_digest):
                continue
            fingerprint = lent.made_from()
            if own or run.unfinished(stage):
                raise WorkspaceError(
                    f"run {run.name} has a {stage} that is not that of {source.name}. "
                    "Choose another --run, or leave --from-run out"
                )
            values = {**read_yaml(source.folder / stage / CONFIG).values, "run": run.name}
            run.begin(stage, fingerprint, yaml12.dump(values))
            if run.borrow(stage, source, fingerprint) is None:
                raise WorkspaceError(f"the {stage} of run {source.name} has just been replaced")
        reporter.say(f"{stage}: that of run {source.name}, linked from there")


def _meet(stages: Sequence[str], config: SppConfig) -> None:
    for stage in stages:
        if stage not in _TOGETHER:
            raise ConfigError(
                f"{stage} runs in one process, and there are {processes.count()}. "
                f"Start it without accelerate launch; with it: {', '.join(_TOGETHER)}"
            )
    from spp_cli.models.loading import resolve_device

    processes.connect(resolve_device(config.model.device))


def _help_with(stage: str, config: SppConfig, workspace: Workspace) -> None:
    """Do the part in ``stage`` of a process that is not the main one."""
    told = processes.follow()
    if told is None:
        return
    partial, folders = told
    from spp_cli.stages.stage import Sources

    model, demo = dense_model(config, stage)
    module = importlib.import_module(MODULES[stage])
    module.run(config, Sources(model, demo, folders, **_stores(workspace)), partial, Silent())


def calibrate(config: SppConfig, reporter: Reporter, *, preview: int = 0) -> dict[str, Any]:
    """Keep the calibration tokens that prune would take; return where they are, and what.

    ``preview`` sequences are told as text besides.

    Raises:
        SppError: whatever hinders it.
    """
    workspace = Workspace(config.workspace)
    from spp_cli.stages import calibration
    from spp_cli.stages.stage import Sources

    model, demo = dense_model(config, "calibrate")
    sources = Sources(model, demo, **_stores(workspace))
    return calibration.run(config, sources, reporter, preview=preview)


def preview(config: SppConfig, reporter: Reporter, *, run: str | None, count: int) -> Any:
    """Return ``count`` rows that finetune would train on, as a document of plain values.

    Raises:
        SppError: whatever hinders it.
    """
    workspace = Workspace(config.workspace)
    from spp_cli.stages import training_data
    from spp_cli.stages.stage import Sources

    model, demo = dense_model(config, "finetune")
    folder = workspace.run(run or config.run_name()).require("prune", for_stage="finetune")
    sources = Sources(model, demo, **_stores(workspace))
    return training_data.preview_rows(config, sources, folder, reporter, count=count)


def find_lr(config: SppConfig, reporter: Reporter, *, run: str | None) -> dict[str, Any]:
    """Return which learning rate suits the finetune of a run, as found by short ones.

    Raises:
        SppError: whatever hinders them.
    """
    workspace = Workspace(config.workspace)
    handle = workspace.run(run or config.run_name())
    from spp_cli.stages import search
    from spp_cli.stages.stage import Sources

    model, demo = dense_model(config, "finetune")
    folders = {"prune": handle.require("prune", for_stage="finetune")}
    _check_files("finetune", config, handle, folders)
    sources = Sources(model, demo, folders, **_stores(workspace))
    with handle.lock("finetune"):
        return search.search(config, sources, handle.folder, reporter)


def _stores(workspace: Workspace) -> dict[str, Any]:
    """Return what all runs of a workspace share: tokens, and what is known of dense models."""
    from spp_cli.data.row_store import RowStore
    from spp_cli.data.token_store import TokenStore

    cache = workspace.digest_cache
    return {
        "store": TokenStore(workspace.calibration, cache),
        "rows": RowStore(workspace.training, cache),
        "statistics": workspace.statistics,
    }


def up_to_date(stages: Sequence[str], config: SppConfig, *, run: str) -> bool:
    """Whether ``run_stages`` would skip all of ``stages``, as far as the disk can tell.

    A result that is missing, stale or damaged is none; the reason is told when it is to be made.
    """
    workspace = Workspace(config.workspace)
    handle = workspace.run(run)
    manifests = {stage: handle.intact_manifest(stage) for stage in stages}
    try:
        return all(
            manifest
            and _work(stage, config, workspace, handle).fingerprint.is_met_by(manifest.made_from())
            for stage, manifest in manifests.items()
        )
    except SppError:
        return False


@dataclass(frozen=True)
class _Work:
    """What a stage reads, all with digests, and the fingerprint of what comes of it."""

    model: Path
    demo: bool
    folders: dict[str, Path]
    digests: dict[str, str]
    fingerprint: Fingerprint


def _work(stage: str, config: SppConfig, workspace: Workspace, run: Run) -> _Work:
    folders = {name: run.require(name, for_stage=stage) for name in _NEEDS[stage]}
    model, demo = dense_model(config, stage)
    digests = {}
    if stage == "prune" or _measures_dense(stage, config):
        digests["dense"] = _model_digest(model, workspace)
    if stage == "eval":
        folders = {name: path for name in MODULES if (path := run.stage(name))}
        if run.intact_manifest(stage) is None:  # an evaluation adds to what it has found before
            folders.pop(stage, None)
        if "prune" not in folders:  # of which the finetuned model is made
            folders.pop("finetune", None)
    if stage == "eval" and "dense" not in digests:
        demo = demo or _is_demo_run(folders)
        digests |= _recorded_dense(run)
    for name in folders:
        manifest = run.manifest(name)
        assert manifest is not None
        digests[name] = manifest.output_digest
    inputs = _inputs(stage, config, digests, demo, workspace.digest_cache)
    if "finetune" in digests and stage == "eval":
        digests["finetune"] = f"{digests['prune']}+{digests['finetune']}"
    more: dict[str, Any] = {}
    if stage == "prune":
        # Another dense model is another run, not a stale one: refused like any other setting.
        more["model"] = {"digest": inputs.pop("model")[:16], "dtype": config.model.dtype}
    fingerprint = settings_fingerprint(stage, config, inputs)
    fingerprint = replace(fingerprint, settings={**fingerprint.settings, **more})
    return _Work(model, demo, folders, digests, fingerprint)


def _measures_dense(stage: str, config: SppConfig) -> bool:
    return stage == "eval" and "dense" in config.eval.stages


def _is_demo_run(folders: Mapping[str, Path]) -> bool:
    """Whether the dense model, which nobody reads, is the embedded one or was made from it."""
    from spp_cli.models.checkpoint import is_demo_family

    return any(is_demo_family(folder) for folder in folders.values())


def _recorded_dense(run: Run) -> dict[str, str]:
    """Return the digest of the dense model, or its beginning, as far as the run has it on record.

    What was measured of that model holds as long as it is this one.
    """
    pruned, evaluated = (run.intact_manifest(name) for name in ("prune", "eval"))
    digest = pruned.settings.get("model", {}).get("digest") if pruned else None
    digest = digest or (evaluated and evaluated.inputs.get("model"))
    return {"dense": str(digest)} if digest else {}


def _run_stage(
    stage: str,
    config: SppConfig,
    workspace: Workspace,
    run: Run,
    reporter: Reporter,
    force: bool,
    tell: Callable[[Any], None],
    keep: str,
) -> StageOutcome:
    # Imported here, not above: help and status must not wait for torch.
    from spp_cli.stages.stage import Sources

    work = _work(stage, config, workspace, run)
    fingerprint, folders = work.fingerprint, work.folders
    with run.lock(stage):
        outdated = [] if force else run.outdated_work(stage, fingerprint)
        partial = run.begin(stage, fingerprint, dump_yaml(config), force=force, keep=keep)
        if partial is None:
            manifest = run.manifest(stage)
            assert manifest is not None
            reporter.say(f"{stage}: up to date in {run.folder / stage}")
            return StageOutcome(stage, run.name, run.folder / stage, True, manifest)
        if outdated:
            reporter.warn(
                f"{stage}: {', '.join(outdated)} changed since the unfinished {stage} of run "
                f"{run.name} was begun, which is discarded"
            )
        lender = workspace.lender(stage, fingerprint, run) if stage in _LENT and not force else None
        if lender and not _is_unchanged(lender, stage, config, reporter):
            lender = None
        if lender and (manifest := run.borrow(stage, lender, fingerprint)):
            reporter.say(f"{stage}: the same as in run {lender.name}, linked from there")
            return StageOutcome(stage, run.name, run.folder / stage, False, manifest)
        if stage == "eval" and run.stage(stage) and stage not in folders:
            reporter.warn(f"{run.folder / stage} is damaged, and what it has found is left out")
        cache = workspace.root / ".cache" / "evaluations"
        sources = Sources(
            work.model, work.demo, folders, work.digests, cache, again=force, **_stores(workspace)
        )
        started, clock = datetime.now(timezone.utc), time.monotonic()
        try:
            with full_disk_errors(partial):
                _check_files(stage, config, run, folders)
                tell((partial, folders))
                module = importlib.import_module(MODULES[stage])
                result = module.run(config, sources, partial, reporter)
        except BaseException as error:
            # A broken dense model is so the next time, too; a full disk may have room then.
            hopeless = stage == "prune" and isinstance(error, ModelError)
            run.abandon(stage, for_good=hopeless)
            if isinstance(error, NumericalError) and run.unfinished(stage):
                raise NumericalError(f"{error}. {_OTHER_SETTINGS}") from error
            raise
        manifest = run.publish(
            stage,
            fingerprint=fingerprint,
            output=result.output,
            metrics=result.metrics,
            mask_digest=result.mask_digest,
            seconds=time.monotonic() - clock,
            peak_memory_bytes=peak_memory(),
            started=started.isoformat(timespec="seconds"),
        )
    return StageOutcome(stage, run.name, run.folder / stage, False, manifest)


def _check_files(stage: str, config: SppConfig, run: Run, folders: Iterable[str]) -> None:
    """Refuse earlier stages that ``stage`` is to read and that are not as they were left."""
    read = set(_NEEDS[stage])
    if stage == "eval":
        read = set(config.eval.stages)
        read |= {"prune"} if "finetune" in read else set()
    for name in sorted(read & set(folders)):
        if not config.trust_files:
            run.check_files(name)


def _is_unchanged(lender: Run, stage: str, config: SppConfig, reporter: Reporter) -> bool:
    """Whether the result of ``lender`` is as it was left; if not, the reporter is told why."""
    try:
        if not config.trust_files:
            lender.check_files(stage)
    except WorkspaceError as error:
        reporter.warn(str(error))
        return False
    return True


def dense_model(config: SppConfig, stage: str) -> tuple[Path, bool]:
    from spp_cli.models.checkpoint import is_demo_family, locate

    is_unread = stage == "merge" or (stage == "finetune" and not config.finetune.distill)
    is_unread |= stage == "eval" and not _measures_dense(stage, config)
    if is_unread and config.model.path != "demo":
        return Path(config.model.path), False
    folder, embedded = locate(
        config.model.path,
        config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        with_weights=stage != "calibrate",
    )
    return folder, embedded or is_demo_family(folder)


def digest_at_hand(model: ModelConfig, workspace: Workspace) -> str | None:
    """Return the digest of a dense model as prune records it; None if its files are not all here.

    Nothing is downloaded.
    """
    from spp_cli.models.checkpoint import at_hand

    try:
        folder = at_hand(model.path, model.revision)
        return None if folder is None else _model_digest(folder, workspace)
    except SppError:  # it cannot be read, which is for the stages that read it to say
        return None


def _model_digest(folder: Path, workspace: Workspace) -> str:
    from spp_cli.models.checkpoint import Checkpoint

    return folder_digest(folder, Checkpoint(folder).deciding_files, workspace.digest_cache)


def _stage_settings(stage: str, config: SppConfig) -> dict[str, Any]:
    """Return the settings that go on record of a stage; ``stage_facts`` says which decide."""
    everything = config.model_dump(mode="json")
    settings = {**everything[stage]}
    if stage == "prune" and settings["allocation"]["name"] == "globs":
        # The first glob that matches counts: here the order of keys decides, and must be seen.
        settings["allocation"] = [list(item) for item in settings["allocation"].items()]
    return {stage: settings}


def settings_fingerprint(stage: str, config: SppConfig, inputs: Mapping[str, str]) -> Fingerprint:
    """Return what a stage's result is made from, and which settings are at their defaults."""
    settings = _stage_settings(stage, config)
    chosen = leaves({stage: config.model_dump(mode="json", exclude_defaults=True).get(stage, {})})
    values, usual = leaves(settings), leaves(_stage_settings(stage, SppConfig()))

    def is_default(keys: tuple[str, ...]) -> bool:
        # The name of a method is the default of its own class, and yet it has been chosen.
        if keys[-1] == "name" and values[keys] != usual.get(keys):
            return False
        return all(other[: len(keys)] != keys for other in chosen)

    defaults = frozenset(filter(is_default, values))
    return Fingerprint(settings, inputs, config.seed, defaults=defaults)


def _inputs(
    stage: str, config: SppConfig, digests: dict[str, str], demo: bool, cache: Path
) -> dict[str, str]:
    """Return the digests of what the stage reads: models, and texts that lie on this machine."""
    from spp_cli.data.sources import content_digest, source_digest

    inputs = {"model" if name == "dense" else name: value for name, value in digests.items()}
    inputs.pop("eval", None)
    name, source, part = {
        "prune": ("calibration", config.prune.calibration.source, "train"),
        "finetune": ("data", config.finetune.data.source, "train"),
        "eval": ("text", config.eval.perplexity.source, "test"),
    }.get(stage, ("", "", ""))
    if name and (digest := source_digest(source, part, demo=demo, cache=cache)):  # type: ignore[arg-type]
        inputs[name] = digest
    tasks, copies = config.eval.task_folder, config.eval.data_folder
    if stage == "eval" and tasks and Path(tasks).expanduser().exists():
        inputs["tasks"] = content_digest(Path(tasks).expanduser())
    if stage == "eval" and copies:
        # It may hold far more than is read: results are kept by what is (``evaluation.results``).
        inputs["copies"] = listing_digest(Path(copies).expanduser())
    held_out = config.finetune.data.validation_source if stage == "finetune" else None
    if held_out and (digest := source_digest(held_out, "validation", demo=demo, cache=cache)):
        inputs["validation"] = digest
    return inputs
