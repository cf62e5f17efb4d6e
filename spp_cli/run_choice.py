"""Which run a later stage is for: of the model that was asked for, or it is refused.

A new run, with a name of its own, takes the earlier stages of another over, as links.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spp_cli.config import ModelConfig, SppConfig
from spp_cli.errors import ConfigError, WorkspaceError
from spp_cli.publishing import CONFIG
from spp_cli.settings import Layer, read_yaml
from spp_cli.workspace import RESULTS, STAGES, Run, Workspace

__all__ = ["NEEDS", "Asked", "Chosen", "choose"]

NEEDS = {"finetune": "prune", "merge": "finetune", "eval": "prune"}
_TAKING_OVER = ("finetune", "merge")  # an evaluation adds to its run, so that none is to be kept


@dataclass(frozen=True)
class Asked:
    """What was asked of a later stage: its configuration, and what file and flags say of it.

    ``layer`` is the file under the flags; ``file_run`` the run that the file alone names.
    """

    command: str
    config: SppConfig
    layer: Layer
    file: str | None = None
    file_run: str | None = None
    from_run: str | None = None

    @property
    def model(self) -> ModelConfig | None:
        """The model that the file or a flag names; None if neither does."""
        return None if self.layer.get("model.path") is None else self.config.model

    @property
    def needed(self) -> str:
        """The stage that the command reads."""
        return NEEDS[self.command]


@dataclass(frozen=True)
class Chosen:
    """The run of a later stage, and the one whose earlier stages it is to take over, if any."""

    run: Run
    source: Run | None = None


def choose(asked: Asked) -> Chosen | None:
    """Return the run that is named, or that of the same settings, or the latest; None: no run.

    Raises:
        ConfigError: --from-run without the name of a new run.
        WorkspaceError: no such run has what the stage reads; or the run is of another model.
    """
    workspace = Workspace(asked.config.workspace)
    if asked.config.run:
        run = workspace.run(asked.config.run)
        source = _source(asked, workspace, run)
        _check_model(source or run, asked, workspace)
        return Chosen(run, source)
    if asked.from_run:
        raise ConfigError("--from-run is for a new run. Name it with --run NAME")
    if asked.model is None:
        return _latest(asked, workspace)
    same_settings = workspace.run(asked.config.run_name())
    if same_settings.exists() and _is_of(same_settings, asked.model, workspace):
        return Chosen(same_settings)
    having = [run for run in workspace.runs() if run.stage(asked.needed)]
    for run in having:
        if _is_of(run, asked.model, workspace):
            return Chosen(run)
    if not having or _is_dense_alone(asked):
        return _latest(asked, workspace)
    command = f"spp {asked.needed}{f' {asked.file}' if asked.file else ''}"
    raise WorkspaceError(
        f"{workspace.root} has no run with {RESULTS[asked.needed]} of {_name(asked.model)} "
        f"({_origin(asked)}); {having[0].name} is of {_name(_recorded_model(having[0]))}. "
        f"Run: {command}"
    )


def _latest(asked: Asked, workspace: Workspace) -> Chosen | None:
    if _is_dense_alone(asked) and asked.model is not None:
        return None
    try:
        return Chosen(workspace.latest(having=asked.needed))
    except WorkspaceError:
        if _is_dense_alone(asked):
            return None  # the dense model needs no run before it
        raise


def _is_dense_alone(asked: Asked) -> bool:
    return asked.command == "eval" and set(asked.config.eval.stages) == {"dense"}


def _source(asked: Asked, workspace: Workspace, run: Run) -> Run | None:
    """Return the run whose earlier stages ``run`` is to take over; None if it has its own.

    Without --from-run it is the one of the file's name or settings, or the only one that there is.
    """
    if asked.command not in _TAKING_OVER:
        if asked.from_run:
            raise ConfigError(f"--from-run is for {' and '.join(_TAKING_OVER)}. Leave it out")
        return None
    if asked.from_run:
        source = workspace.existing_run(asked.from_run)
        source.require(asked.needed, for_stage=asked.command)
        return source if source.name != run.name else None
    if any(run.stage(stage) or run.unfinished(stage) for stage in STAGES):
        return None
    having = [
        other
        for other in workspace.runs()
        if other.intact_manifest(asked.needed)
        and (asked.model is None or _is_of(other, asked.model, workspace))
    ]
    named = asked.file_run
    if asked.model is not None:
        unnamed = asked.config.model_copy(update={"run": None})
        named = named or unnamed.run_name()
    for other in having:
        if other.name == named:
            return other
    made = {m.output_digest for other in having if (m := other.intact_manifest(asked.needed))}
    if len(made) > 1:
        raise WorkspaceError(
            f"{asked.command} needs {RESULTS[asked.needed]}, and run {run.name} has none. "
            f"To take over that of another run, add --from-run with one of: "
            f"{', '.join(other.name for other in having)}"
        )
    return having[0] if having else None


def _check_model(run: Run, asked: Asked, workspace: Workspace) -> None:
    if asked.model is None or _is_of(run, asked.model, workspace):
        return
    raise WorkspaceError(
        f"run {run.name} is of {_name(_recorded_model(run))}, and {_origin(asked)} names "
        f"{_name(asked.model)}. Name a run of that model with --run, or leave the model out"
    )


def _is_of(run: Run, model: ModelConfig, workspace: Workspace) -> bool:
    """Whether a run is of a model: by its digest where its files are here, else by its name.

    So a folder that has moved is the same model, and another in its place is not. A run that has
    nothing on record is of any.
    """
    recorded, pruned = _recorded_model(run), run.intact_manifest("prune")
    if recorded is None:
        return True
    if model.revision is None and _known_as(model)[0] == _known_as(recorded)[0]:
        model = recorded  # whichever revision that is
    digest = pruned.settings.get("model", {}).get("digest") if pruned else None
    if digest:
        from spp_cli.pipeline import digest_at_hand  # not above: it imports torch

        if found := digest_at_hand(model, workspace):
            return found.startswith(digest)
    return _known_as(model) == _known_as(recorded)


def _recorded_model(run: Run) -> ModelConfig | None:
    """Return the model that a run's first finished stage has on record; None if none has."""
    for stage in STAGES:
        if (folder := run.stage(stage)) is not None:
            layer = read_yaml(folder / CONFIG)
            path = layer.get("model.path")
            revision = layer.get("model.revision")
            return ModelConfig(path=str(path), revision=revision) if path else None
    return None


def _known_as(model: ModelConfig) -> tuple[str, str | None]:
    """Return what a model is called, the same for two ways to write it."""
    folder = Path(model.path).expanduser()
    path = str(folder.resolve()) if folder.exists() else model.path.rstrip("/")
    return path, None if model.revision == "main" else model.revision


def _name(model: ModelConfig | None) -> str:
    if model is None:
        return "an unknown model"
    return f"{model.path}@{model.revision}" if model.revision else model.path


def _origin(asked: Asked) -> str:
    return asked.layer.origin(("model", "path")) or asked.file or "the command"
