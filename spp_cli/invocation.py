"""From a command's YAML file and flags, and the run it goes on with, to one configuration.

From weakest to strongest: the built-in defaults, those of the embedded model, what the run's
earlier stages recorded, $SPP_WORKSPACE, the YAML file, the flags.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spp_cli.config import SppConfig, nearest
from spp_cli.errors import ConfigError
from spp_cli.publishing import CONFIG
from spp_cli.run_choice import NEEDS, Asked, choose
from spp_cli.settings import Layer, assigned, demo_defaults, read_yaml, stack, validate
from spp_cli.workspace import STAGES, Run

__all__ = [
    "Resolved",
    "default_workspace",
    "recorded_settings",
    "resolve",
    "resolve_for_folder",
    "resolve_stage",
    "stage_list",
]


def default_workspace() -> str:
    """Return $SPP_WORKSPACE if it is set, else "workspace"."""
    return os.environ.get("SPP_WORKSPACE") or SppConfig.model_fields["workspace"].default


@dataclass(frozen=True)
class Resolved:
    """A command's configuration, and the run it is for; None: the one that it names itself.

    ``source`` is the run whose earlier stages that run is to take over, if any.
    """

    config: SppConfig
    run: str | None
    source: str | None = None


def resolve(command: str, file: str | None, flags: Layer) -> tuple[SppConfig, str | None]:
    """Return the configuration of a command, and the run it is for; None: the one it names itself.

    Raises:
        ConfigError: a YAML file, a flag, or the two together are wrong.
        WorkspaceError: there is no run for the command to work on.
    """
    resolved = resolve_stage(command, file, flags)
    return resolved.config, resolved.run


def resolve_stage(
    command: str, file: str | None, flags: Layer, *, from_run: str | None = None
) -> Resolved:
    """Return what ``resolve`` does, and the run to take earlier stages over from.

    Raises:
        SppError: as ``resolve``; or the run is not of the model that file or flags name.
    """
    origin = "$SPP_WORKSPACE" if os.environ.get("SPP_WORKSPACE") else ""
    yaml = read_yaml(file) if file else Layer()
    asked = stack(assigned([("workspace", default_workspace(), origin)]), yaml, flags)
    config = _complete(asked)
    if command not in NEEDS:
        return Resolved(config, config.run)
    chosen = choose(Asked(command, config, asked, file, yaml.get("run"), from_run))
    if chosen is None:
        return Resolved(config, None)
    recorded = _recorded(chosen.source or chosen.run, _before(command))
    if file:  # it speaks for the stages to come; the run only for those that are done
        recorded = recorded.only(("model", "seed", *_before(command)))
    if asked.get("model.path") not in (None, recorded.get("model.path")):
        recorded = _without_revision(recorded)  # which is that of another path
    source = chosen.source.name if chosen.source else None
    return Resolved(_complete(stack(recorded, asked)), chosen.run.name, source)


def _without_revision(layer: Layer) -> Layer:
    model = layer.values.get("model")
    if not isinstance(model, Mapping):
        return layer
    kept = {key: value for key, value in model.items() if key != "revision"}
    return Layer({**layer.values, "model": kept}, layer.origins)


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
