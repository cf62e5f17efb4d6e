"""From a sweep file to its points: every combination of the grid, and those of the list."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from spp_cli.config import SppConfig, nearest
from spp_cli.errors import ConfigError
from spp_cli.fingerprint import canonical_json
from spp_cli.invocation import resolve, stage_list
from spp_cli.pipeline import settings_fingerprint
from spp_cli.settings import Layer, assigned, read_yaml, stack
from spp_cli.sweeps.choices import (
    Choice,
    axis,
    point_choice,
    settings_at,
    together,
)
from spp_cli.workspace import STAGES

__all__ = ["Point", "Sweep", "read_sweep"]

_KEYS = ("base", "config", "grid", "points", "stages")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its name, what sets it apart, its stages and its whole configuration."""

    name: str
    values: dict[str, Any]
    stages: tuple[str, ...]
    config: SppConfig
    origin: str = ""

    def pruned_as(self) -> str:
        """Return a text that is the same for all points whose pruned model is the same."""
        return canonical_json(
            [*self._whole_model(), settings_fingerprint("prune", self.config, {}).digest]
        )

    def made_as(self) -> str:
        """Return a text that is the same for all points that are told the same."""
        made = [settings_fingerprint(stage, self.config, {}).record() for stage in self.stages]
        return canonical_json([*self._whole_model(), *made])

    def _whole_model(self) -> list[Any]:
        model = self.config.model
        return [model.path, model.revision, model.dtype]


@dataclass(frozen=True)
class Sweep:
    """The points of a sweep file, all in one workspace."""

    name: str
    file: str
    points: tuple[Point, ...]

    @property
    def workspace(self) -> str:
        """The folder of all its runs."""
        return self.points[0].config.workspace


def read_sweep(file: str, flags: Layer) -> Sweep:
    """Return the sweep of a YAML file; ``flags`` are stronger than what the file says.

    Its keys: ``base``, the path of a configuration beside the file; ``config``, keys over it;
    ``grid``, a mapping of keys to lists, every combination of which is a point; ``points``, a list
    of mappings of keys; ``stages``, those of every point that does not say otherwise.

    Raises:
        ConfigError: one line for each mistake, of any point, with its line in the file.
    """
    layer = read_yaml(file)
    choices = _choices(layer, file)
    stages = stage_list(layer.values.get("stages", list(STAGES)), layer.origin(("stages",)))
    base = _base(layer, Path(file))
    points: list[Point] = []
    problems: list[str] = []
    for choice in choices:
        try:
            _check_flags(choice, flags)
            points.append(_point(choice, stages, base, flags))
        except ConfigError as error:
            problems += str(error).splitlines()
    problems += _doubles(points)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return Sweep(Path(file).stem, file, tuple(points))


def _choices(layer: Layer, file: str) -> list[Choice]:
    for key in layer.values:
        if key not in _KEYS:
            hint = nearest(key, _KEYS) or f". Allowed here: {', '.join(_KEYS)}"
            raise ConfigError(f"{layer.origin((key,))}: unknown key '{key}'{hint}")
    grid, listed = layer.values.get("grid"), layer.values.get("points")
    if not grid and not listed:
        raise ConfigError(f"{file}: has no points. Add grid, such as {{prune.sparsity: [0.5]}}")
    if not isinstance(grid or {}, Mapping):
        raise ConfigError(f"{layer.origin(('grid',))}: grid must be a mapping of keys to lists")
    if not isinstance(listed or [], list):
        raise ConfigError(f"{layer.origin(('points',))}: points must be a list of mappings")
    axes = [axis(layer, key, ("grid", key)) for key in grid or {}]
    crossed = [together(choices) for choices in product(*axes)] if axes else []
    return crossed + [point_choice(layer, ("points", place)) for place in range(len(listed or []))]


def _base(layer: Layer, file: Path) -> Layer:
    """Return what all points share."""
    path = layer.values.get("base")
    if path is not None and not isinstance(path, str):
        raise ConfigError(
            f"{layer.origin(('base',))}: base must be the path of a configuration, "
            "beside this file. Settings go under config"
        )
    base = read_yaml(file.parent / Path(path).expanduser()) if path else Layer()
    if layer.values.get("config") is None:
        return base
    return stack(base, settings_at(layer, ("config",)))


def _check_flags(choice: Choice, flags: Layer) -> None:
    for keys in flags.origins.keys() & choice.layer.origins.keys():
        raise ConfigError(
            f"{flags.origins[keys]}: {'.'.join(map(str, keys))} differs between the points of the "
            f"sweep ({choice.layer.origins[keys]}). Leave it out here or there"
        )


def _point(choice: Choice, stages: Sequence[str], base: Layer, flags: Layer) -> Point:
    name = choice.label
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{choice.origin}: {name!r} cannot be the name of a run: up to 100 letters, digits, "
            "'.', '_' and '-', beginning with a letter or digit. Give the point a name"
        )
    named = assigned([("run", name, choice.origin)])
    config, _ = resolve("run", None, stack(base, choice.layer, flags, named))
    chosen = choice.stages or stages
    kept = tuple(stage for stage in stages if stage in chosen)
    if "eval" in kept and not {"dense", *kept} & set(config.eval.stages):
        raise ConfigError(
            f"{choice.origin}: {name} has none of the stages that eval.stages names: "
            f"{', '.join(config.eval.stages)}. Add prune to eval.stages"
        )
    return Point(name, choice.values, kept, config, choice.origin)


def _doubles(points: Sequence[Point]) -> Iterator[str]:
    """Yield a line for each point that has another's name, or is the same under another."""
    named: dict[str, Point] = {}
    made: dict[str, Point] = {}
    for point in points:
        other = named.setdefault(point.name.lower(), point)
        same = made.setdefault(point.made_as(), point)
        if other is not point:
            yield (
                f"{point.origin}: a second point is called {point.name}; the first: "
                f"{other.origin}. Remove one, or give it another name"
            )
        elif same is not point:
            yield (
                f"{point.origin}: {point.name} comes to the same as {same.name} "
                f"({same.origin}). Remove one"
            )
