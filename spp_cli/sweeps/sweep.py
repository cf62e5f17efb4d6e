"""From a sweep file to its points: every combination of the grid, and those of the list."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from spp_cli.config import SppConfig, as_word, nearest
from spp_cli.errors import ConfigError
from spp_cli.fingerprint import canonical_json
from spp_cli.invocation import resolve, stage_list
from spp_cli.pipeline import settings_fingerprint
from spp_cli.settings import Layer, assigned, read_yaml, stack
from spp_cli.sweeps.choices import (
    Choice,
    Problems,
    axis,
    point_choice,
    settings_at,
    together,
)
from spp_cli.sweeps.record import has_plain_names
from spp_cli.workspace import STAGES, Workspace

__all__ = ["Point", "Sweep", "read_sweep"]

_KEYS = ("base", "config", "grid", "points", "stages")
_MOST = 10_000  # points; each has a folder, and is checked before the first runs
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
    _check_keys(layer, file)
    problems = Problems()
    stages = problems.attempt(
        stage_list, layer.values.get("stages", list(STAGES)), layer.origin(("stages",))
    )
    base = problems.attempt(_base, layer, Path(file))
    choices = _choices(layer, problems)
    points: list[Point] = []
    if base is not None and problems:  # names would lack a part: settings alone are looked at
        for choice in choices:
            problems.attempt(resolve, "run", None, stack(base, choice.layer, flags))
    elif base is not None and stages is not None:
        read = [problems.attempt(_point, choice, stages, base, flags) for choice in choices]
        points = [point for point in read if point]
        problems += _doubles(points)
    problems.report()
    name = Path(file).stem
    return Sweep(name, file, tuple(_renamed(points, name)))


def _check_keys(layer: Layer, file: str) -> None:
    problems = Problems()
    for key in layer.values:
        if key not in _KEYS:
            hint = nearest(key, _KEYS) or f". Allowed here: {', '.join(_KEYS)}"
            problems.append(f"{layer.origin((key,))}: unknown key '{key}'{hint}")
    problems.report()
    grid, listed = layer.values.get("grid"), layer.values.get("points")
    if not grid and not listed:
        raise ConfigError(f"{file}: has no points. Add grid, such as {{prune.sparsity: [0.5]}}")
    if not isinstance(grid or {}, Mapping):
        raise ConfigError(f"{layer.origin(('grid',))}: grid must be a mapping of keys to lists")
    if not isinstance(listed or [], list):
        raise ConfigError(f"{layer.origin(('points',))}: points must be a list of mappings")


def _choices(layer: Layer, problems: Problems) -> list[Choice]:
    """Return what can be read of the grid, crossed, and of the list of points."""
    grid, listed = layer.values.get("grid") or {}, layer.values.get("points") or []
    axes = [problems.attempt(axis, layer, key, ("grid", key)) for key in grid]
    read = [choices for choices in axes if choices]
    count = math.prod(map(len, read)) if read else 0
    if count + len(listed) > _MOST:
        problems.append(
            f"{layer.origin(('grid',))}: the grid has {count:,} points; a sweep has at most "
            f"{_MOST:,}. Take values out, or spread them over several sweeps"
        )
        return []
    crossed = [problems.attempt(together, each) for each in product(*read)] if read else []
    places = range(len(listed))
    alone = [problems.attempt(point_choice, layer, ("points", place)) for place in places]
    return [choice for choice in (*crossed, *alone) if choice]


def _renamed(points: Sequence[Point], sweep: str) -> Iterator[Point]:
    """Yield the points under the names of their runs, which begin with that of the sweep.

    So two sweeps have no run in common. One that an earlier version of spp has begun keeps the
    names that it had.
    """
    before = bool(points) and has_plain_names(Workspace(points[0].config.workspace), sweep)
    start = "" if before else f"{as_word(sweep) or 'sweep'}-"
    for point in points:
        name = f"{start}{point.name}"
        yield replace(point, name=name, config=point.config.model_copy(update={"run": name}))


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
    _check_flags(choice, flags)
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
