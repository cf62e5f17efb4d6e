"""From a command's YAML file and flags, and the run it goes on with, to one configuration.

From weakest to strongest: the built-in defaults, those of the embedded model, what the run's
earlier stages recorded, $SPP_WORKSPACE, the YAML file, the flags.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spp_cli.config import SppConfig, nearest
from spp_cli.errors import ConfigError, WorkspaceError
from spp_cli.publishing import CONFIG
from spp_cli.settings import Layer, assigned, demo_defaults, read_yaml, stack, validate
from spp_cli.workspace import STAGES, Run, Workspace

__all__ = [
    "default_workspace",
    "recorded_settings",
    "resolve",
    "resolve_for_folder",
    "stage_list",
]

_NEEDS = {"finetune": "prune", "merge": "finetune", "eval": "prune"}


def default_workspace() -> str:
    """Return $SPP_WORKSPACE if it is set, else "workspace"."""
    return os.environ.get("SPP_WORKSPACE") or SppConfig.model_fields["workspace"].default


def resolve(command: str, file: str | None, flags: Layer) -> tuple[SppConfig, str | None]:
    """Return the configuration of a command, and the run it is for; None: the one it names itself.

    Raises:
        ConfigError: a YAML file, a flag, or the two together are wrong.
        WorkspaceError: there is no run for the command to go on with.
    """
    origin = "$SPP_WORKSPACE" if os.environ.get("SPP_WORKSPACE") else ""
    yaml = read_yaml(file) if file else Layer()
    asked = stack(assigned([("workspace", default_workspace(), origin)]), yaml, flags)
    config = _complete(asked)
    if command not in _NEEDS:
        return config, config.run
    run = _choose(command, config, names_a_model=asked.get("model.path") is not None)
    if run is None:
        return config, None
    recorded = _recorded(run, _before(command))
    if file:  # it speaks for the stages to come; the run only for those that are done
        recorded = recorded.only(("model", "seed", *_before(command)))
    return _complete(stack(recorded, asked)), run.name


def resolve_for_folder(folder: str, file: str | None, flags: Layer) -> SppConfig:
    """Return the configuration for evaluating a folder that belongs to no run.

    A folder that was made from the embedded model is measured as that model is.
    """
    from spp_cli.models.checkpoint import is_demo_family  # not above: it imports torch

    path = "demo" if is_demo_family(Path(folder)) else folder
    yaml = read_yaml(file) if file else Layer()
    return _complete(stack(yaml, flags, assigned([("model.path", path, "--path")])))


def stage_list(value: Any, origin: str) -> tuple[str, ...]:
    """Return the stages to run that a list, or a text with commas, names, in their order.

    Raises:
        ConfigError: one is unknown, or one that another reads is not among them.
    """
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list) or not words:
        raise ConfigError(f"{origin}: stages must be a list of {', '.join(STAGES)}")
    names = [str(word).strip() for word in words]
    for name in names:
        if name not in STAGES:
            hint = nearest(name, STAGES)
            raise ConfigError(
                f"{origin}: stages has {name!r}; must be of {', '.join(STAGES)}{hint}"
            )
    needed = {"prune", *(["finetune"] if "merge" in names else [])}
    for missing in sorted(needed - set(names)):
        raise ConfigError(f"{origin}: stages lacks {missing}, which the others read. Add it")
    return tuple(stage for stage in STAGES if stage in names)


def _complete(layer: Layer) -> SppConfig:
    """Check a layer, over the embedded model's defaults if it is the one."""
    if layer.get("model.path") in (None, "demo"):
        layer = stack(demo_defaults(), layer)
    return validate(layer)


def _choose(command: str, config: SppConfig, *, names_a_model: bool) -> Run | None:
    """Return the run that a later stage is for: named, or of the same settings, or the latest."""
    workspace = Workspace(config.workspace)
    if config.run:
        return workspace.run(config.run)
    if names_a_model and (run := workspace.run(config.run_name())).exists():
        return run
    try:
        return workspace.latest(having=_NEEDS[command])
    except WorkspaceError:
        if command == "eval" and set(config.eval.stages) == {"dense"}:
            return None  # the dense model needs no run before it
        raise


def recorded_settings(run: Run) -> Layer:
    """Return what the run's finished stages were made with, each by its own record; unchecked.

    Raises:
        ConfigError: a config.yaml cannot be read.
    """
    return stack(_recorded(run, STAGES), assigned([("run", run.name, "")]))


def _recorded(run: Run, stages: Sequence[str]) -> Layer:
    """Return what those of ``stages`` that are finished were made with."""
    layers = {
        stage: read_yaml(folder / CONFIG)
        for stage in stages
        if (folder := run.stage(stage)) is not None
    }
    # Each stage speaks for its own section, the latest for all that is not a finished stage's.
    latest = list(layers.values())[-1:]
    sections = [layer.only([stage]) for stage, layer in layers.items()]
    together = stack(*latest, *sections)
    return together.only(key for key in together.values if key not in ("workspace", "run"))


def _before(command: str) -> tuple[str, ...]:
    return STAGES[: STAGES.index(command)]
