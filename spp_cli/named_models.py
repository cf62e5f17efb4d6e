"""The models that a command line names: a RUN, one of its stages, a folder, or a hub id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spp_cli.config import SppConfig, nearest
from spp_cli.errors import ConfigError, SppError, WorkspaceError
from spp_cli.invocation import recorded_settings, resolve_for_folder
from spp_cli.progress import Reporter
from spp_cli.publishing import MANIFEST
from spp_cli.settings import Layer, stack, validate
from spp_cli.status import MODELS
from spp_cli.workspace import RESULTS, STAGES, Run, Workspace

__all__ = ["NamedModel", "Place", "find", "folder_model", "run_models"]


@dataclass(frozen=True)
class NamedModel:
    """A model that can be loaded: ``name`` is RUN/STAGE, or the path that was given."""

    name: str
    stage: str | None  # None: it belongs to no run
    folder: Path  # with its config and tokenizer and, unless it is an adapter's, its weights
    config: SppConfig
    load: Callable[[], Any]  # returns a PreTrainedModel on its device


@dataclass(frozen=True)
class Place:
    """What a path names: a run, one stage of it, or neither."""

    run: Run | None = None
    stage: str | None = None


def find(workspace: Workspace, path: str) -> Place:
    """Return what ``path`` names; a run of the workspace comes before a folder of the same name.

    A stage is named by RUN/STAGE or by its folder, a run by its name or its folder.

    Raises:
        ConfigError: a stage that has no model.
    """
    name, _, stage = path.rstrip("/").partition("/")
    folder = Path(path).expanduser().resolve()
    if run := next((run for run in workspace.runs() if run.name == name), None):
        if not stage or stage in MODELS:
            return Place(run, stage or None)
        if not folder.exists():
            raise _no_model(path, stage)
    if any(Run(folder).stage(stage) for stage in STAGES):
        return Place(Run(folder))
    if folder.name in STAGES and (folder / MANIFEST).is_file():
        if folder.name not in MODELS:
            raise _no_model(path, folder.name)
        return Place(Run(folder.parent), folder.name)
    return Place()


def _no_model(path: str, stage: str) -> ConfigError:
    return ConfigError(
        f"{path} names no model of a run; must end in one of "
        f"{', '.join(MODELS)}{nearest(stage, MODELS)}"
    )


def folder_model(path: str, flags: Layer) -> NamedModel:
    """Return the model in a folder, or of the hub; ``flags`` are of the section model.

    Raises:
        ModelError: there is none.
    """
    from spp_cli.models.checkpoint import Checkpoint, locate  # not above: help needs no torch
    from spp_cli.stages.stage_model import folder_loader

    trusted = bool(flags.get("model.trust_remote_code"))
    folder, _ = locate(path, trust_remote_code=trusted)
    Checkpoint(folder)
    config = resolve_for_folder(str(folder), None, flags)
    return NamedModel(path, None, folder, config, folder_loader(config, folder))


def run_models(
    run: Run, stages: Sequence[str], flags: Layer, reporter: Reporter
) -> list[NamedModel]:
    """Return the models of ``stages`` of a run, or without them of all that differ.

    A dense model that was not asked for by name and cannot be had is left out, with a warning.

    Raises:
        WorkspaceError: a stage is missing or damaged.
        ModelError: the dense model was asked for by name and cannot be had.
    """
    from spp_cli.stages.stage import Sources
    from spp_cli.stages.stage_model import distinct_stages, loader, model_folder

    config = validate(stack(recorded_settings(run), flags))
    folders = {stage: run.folder / stage for stage in MODELS if run.stage(stage)}
    sources = Sources(Path(config.model.path), False, folders)
    chosen = list(stages) or distinct_stages(sources)
    for stage in chosen:
        # An adapter needs its base. The record of a stage says whether it is there, and whole.
        for needed in {"dense": (), "finetune": ("prune", "finetune")}.get(stage, (stage,)):
            if run.manifest(needed) is None:
                raise WorkspaceError(
                    f"{run.name}/{stage} needs {RESULTS[needed]}, and run {run.name} has none. "
                    f"Run: spp {needed} --run {run.name}"
                )
            if not config.trust_files:
                run.check_files(needed)
    if "dense" in chosen:
        try:
            sources = Sources(_dense(config), False, folders)
        except SppError as error:
            if stages:
                raise
            reporter.warn(f"the dense model is left out: {error}")
            chosen.remove("dense")
    return [
        NamedModel(
            f"{run.name}/{stage}",
            stage,
            model_folder(sources, stage),
            config,
            loader(config, sources, stage),
        )
        for stage in chosen
    ]


def _dense(config: SppConfig) -> Path:
    from spp_cli.models.checkpoint import Checkpoint
    from spp_cli.pipeline import dense_model

    folder, _ = dense_model(config, "generate")
    Checkpoint(folder)
    return folder
