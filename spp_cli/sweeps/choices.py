"""What a sweep file says, in pieces: some settings to go together, and a word for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, TypeVar

from spp_cli.config import SppConfig, as_word, nearest, parse_n_of_m
from spp_cli.errors import ConfigError
from spp_cli.fields import Keys
from spp_cli.invocation import stage_list
from spp_cli.settings import Layer, assigned, stack
from spp_cli.workspace import STAGES

__all__ = ["Choice", "Problems", "axis", "point_choice", "settings_at", "together"]

Found = TypeVar("Found")
_OUR_OWN = ("workspace", "run")  # what the sweep sets by itself


class Problems(list[str]):
    """The mistakes found so far, one line each, so that all are reported at once."""

    def attempt(self, work: Callable[..., Found], *given: Any) -> Found | None:
        """Return what ``work`` does; None if it raises ConfigError, whose lines are added."""
        try:
            return work(*given)
        except ConfigError as error:
            self += str(error).splitlines()
            return None

    def report(self) -> None:
        """Raise ConfigError with each mistake once, if there are any."""
        if self:
            raise ConfigError(*dict.fromkeys(self))


@dataclass(frozen=True)
class Choice:
    """Settings that go together; ``label`` is their part of a run's name.

    ``values`` are the settings by key as the file has them; ``stages`` None: those of the sweep.
    """

    label: str
    layer: Layer = field(default_factory=Layer)
    values: dict[str, Any] = field(default_factory=dict)
    stages: tuple[str, ...] | None = None
    origin: str = ""


def axis(file: Layer, key: str, at: Keys) -> list[Choice]:
    """Return the choices that the list at ``at`` has for ``key``.

    ``key`` is one of the configuration's, or a word of the user's own for mappings of keys.

    Raises:
        ConfigError: it is neither, or has nothing to choose from; with the line.
    """
    values = _found(file, at)
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{file.origin(at)}: {key} must be a list of values, such as [0.5, 0.75]")
    is_known = "." in key or key in (*SppConfig.model_fields, "stages")
    problems = Problems()
    found: list[Choice | None] = []
    for place, value in enumerate(values):
        here = (*at, place)
        if is_known:
            found.append(problems.attempt(_choice, file, {key: here}))
        elif isinstance(value, Mapping):
            found.append(problems.attempt(point_choice, file, here))
        else:
            hint = nearest(key, SppConfig.model_fields) or (
                ". A word of your own takes mappings, such as {prune.sparsity: 0.5}"
            )
            problems.append(f"{file.origin(here)}: unknown key '{key}'{hint}")
    problems.report()
    return [choice for choice in found if choice]


def point_choice(file: Layer, at: Keys) -> Choice:
    """Return the choice that the mapping of keys at ``at`` is; its ``name`` is the label.

    Raises:
        ConfigError: it is no mapping, or its name is no text; with the line.
    """
    values = _found(file, at)
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(
            f"{file.origin(at)}: must be a mapping of keys, such as {{prune.sparsity: 0.5}}"
        )
    choice = _choice(file, {key: (*at, key) for key in values if key != "name"})
    if "name" not in values:
        return choice
    if not isinstance(values["name"], str | int | float) or isinstance(values["name"], bool):
        raise ConfigError(f"{file.origin((*at, 'name'))}: name must be a word")
    return Choice(str(values["name"]), choice.layer, choice.values, choice.stages, choice.origin)


def together(choices: tuple[Choice, ...]) -> Choice:
    """Return one of each axis as one choice.

    Raises:
        ConfigError: two axes set the same key.
    """
    values: dict[str, Any] = {}
    for choice in choices:
        for key in choice.values:
            if key in values:
                raise ConfigError(
                    f"{choice.origin}: {key} is set by two keys of the grid. "
                    "Put those that belong together into mappings under one word"
                )
        values |= choice.values
    stages = [set(choice.stages) for choice in choices if choice.stages is not None]
    kept = reduce(set.intersection, stages) if stages else None
    return Choice(
        "-".join(filter(None, (choice.label for choice in choices))),
        stack(*(choice.layer for choice in choices)),
        values,
        None if kept is None else tuple(stage for stage in STAGES if stage in kept),
        choices[-1].origin,
    )


def settings_at(file: Layer, at: Keys) -> Layer:
    """Return the settings in the mapping at ``at``, whose keys may be dotted, with their lines."""
    values = _found(file, at)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{file.origin(at)}: {at[-1]} must be a mapping of keys")
    return stack(*(_setting(file, str(key), (*at, key)) for key in values))


def _choice(file: Layer, places: Mapping[str, Keys]) -> Choice:
    """Return the choice that sets each key to what stands at its place."""
    layers: list[Layer] = []
    labels: list[str] = []
    stages = None
    values = {key: _found(file, at) for key, at in places.items()}
    for key, at in places.items():
        origin, value = file.origin(at), values[key]
        if key in _OUR_OWN:
            hint = {"run": "name", "workspace": "--workspace"}[key]
            raise ConfigError(f"{origin}: {key} cannot differ between points. Set {hint} instead")
        if key == "stages":
            stages = _stages(value, origin, in_grid=at[0] == "grid" and at[1] == key)
        elif key == "finetune" and value in (None, "none"):
            stages = ("prune", "eval")
        else:
            # A word in place of the section is its adapter, as in the name of the run.
            name = "finetune.adapter" if key == "finetune" and isinstance(value, str) else key
            layers.append(_setting(file, name, at))
        labels += _labels(key, value)
    origin = file.origin(next(iter(places.values()))) if places else ""
    return Choice("-".join(labels), stack(*layers), values, stages, origin)


def _stages(value: Any, origin: str, *, in_grid: bool) -> tuple[str, ...]:
    try:
        return stage_list(value, origin)
    except ConfigError as error:
        if isinstance(value, list) or not in_grid:
            raise
        raise ConfigError(
            f"{error}. In grid each value is a list, such as [prune, eval]; "
            "the stages of all points belong at the top of the file"
        ) from None


def _setting(file: Layer, dotted: str, at: Keys) -> Layer:
    """Return the layer that sets a key to what stands at ``at``, each part with its line."""
    layer = assigned([(dotted, _found(file, at), file.origin(at))])
    keys = tuple(dotted.split("."))
    below = {key: line for key, line in file.origins.items() if key[: len(at)] == at}
    layer.origins |= {(*keys, *key[len(at) :]): line for key, line in below.items()}
    return layer


def _found(file: Layer, at: Keys) -> Any:
    values: Any = file.values
    for key in at:
        values = values[key]
    return values


def _labels(key: str, value: Any) -> Iterator[str]:
    """Yield words for a value: a text stands for itself, a number beside the end of its key."""
    last = key.rpartition(".")[2]
    if isinstance(value, bool) or value in (None, [], {}):
        yield last if value else f"no-{last}"
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _labels(str(name), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _labels(key, inner)
    elif isinstance(value, int | float):
        yield f"{value:g}" if last == "sparsity" else f"{last}-{value:g}"
    else:
        yield _word(str(value))


def _word(text: str) -> str:
    """Return a text as part of a run's name: 2:4 as 2of4, of a path the end."""
    if parse_n_of_m(text):
        return text.replace(":", "of")
    return as_word(text.rstrip("/").rpartition("/")[2])
