"""From YAML files, flags and ``--set`` to one checked configuration, with every error located."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from spp_cli import fields, yaml12
from spp_cli.config import SppConfig, nearest, parse_n_of_m
from spp_cli.errors import ConfigError
from spp_cli.fields import Keys
from spp_cli.reading import read_bytes


@dataclass
class Layer:
    """Settings as nested dictionaries, and where each key came from: "a.yaml:4", "--sparsity"."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Keys, str] = field(default_factory=dict)

    def origin(self, keys: Keys) -> str:
        """Return where ``keys`` was set, or a key below it, or the nearest key above it."""
        below = (at for key, at in self.origins.items() if key[: len(keys)] == keys)
        if keys and (found := self.origins.get(keys) or next(below, "")):
            return found
        while keys and keys not in self.origins:
            keys = keys[:-1]
        return self.origins.get(keys, "")

    def get(self, dotted: str) -> Any:
        """Return the value of a key, with ``model: demo`` read as ``model.path``; None if unset."""
        values: Any = self.values
        keys = dotted.split(".")
        for depth, key in enumerate(keys):
            if isinstance(values, str) and fields.shorthand(tuple(keys[:depth])) == key:
                return values
            values = values.get(key) if isinstance(values, Mapping) else None
        return values

    def only(self, sections: Iterable[str]) -> Layer:
        """Return the layer with these top-level keys alone."""
        return Layer({k: self.values[k] for k in sections if k in self.values}, self.origins)


def read_yaml(path: str | Path, name: str = "") -> Layer:
    """Read one YAML file; errors call it ``name``, or by its path.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or has a key twice (with its line).
    """
    name = name or str(path)
    try:
        text = read_bytes(Path(path)).decode("utf-8-sig")
        node = yaml12.compose(text)
        layer = Layer(origins={(): name})
        if node is None:
            return layer
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{name}: must hold keys and values, such as 'seed: 0'")
        _locate(node, (), name, layer.origins)
        layer.values = yaml12.parse(text)
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file. The ready ones are in configs/") from None
    except IsADirectoryError:
        raise ConfigError(
            f"{name}: a folder, not a YAML file. A model's folder is given with --model"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: not UTF-8 text, so it is no YAML file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name}: cannot be read: {reason}") from error
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply, or an alias that contains itself") from None
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_problem(name, error)) from error
    return layer


@cache
def demo_defaults() -> Layer:
    """Return what the embedded model is pruned and finetuned with unless told otherwise."""
    return read_yaml(
        Path(__file__).parent / "demo" / "defaults.yaml", "defaults of the embedded model"
    )


def _yaml_problem(name: str, error: yaml.YAMLError) -> str:
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    problem = " ".join(str(problem or error).split())
    where = f"{name}:{mark.line + 1}" if mark else name
    is_alias = "alias" in f"{getattr(error, 'context', '')} {problem}"
    hint = ". Put quotes around a text that begins with '*'" if is_alias else ""
    return f"{where}: not valid YAML: {problem}{hint}"


def _locate(node: yaml.Node, keys: Keys, name: str, origins: dict[Keys, str]) -> None:
    """Note the line of every key below ``node``; refuse a key given twice."""
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not yaml12.is_word(key):
                raise ConfigError(f"{name}:{line}: a key must be a word, such as 'prune'")
            if key.value in lines:
                raise ConfigError(
                    f"{name}:{line}: '{'.'.join(map(str, (*keys, key.value)))}' is given twice, "
                    f"first on line {lines[key.value]}. Remove one"
                )
            lines[key.value] = line
            origins[(*keys, key.value)] = f"{name}:{line}"
            _locate(value, (*keys, key.value), name, origins)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            origins[(*keys, index)] = f"{name}:{item.start_mark.line + 1}"
            _locate(item, (*keys, index), name, origins)


def parse_assignment(text: str) -> tuple[str, Any, str]:
    """Split ``prune.calibration.samples=64`` into its key, its value, and the origin to name."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text}: must look like prune.calibration.samples=64")
    origin = f"--set {text}"
    return key.strip(), parse_value(key.strip(), value, origin), origin


def parse_value(key: str, text: str, origin: str) -> Any:
    """Return the value that ``text`` stands for: itself where ``key`` holds text, else as in YAML.

    Raises:
        ConfigError: the text is not YAML; it begins with ``origin``.
    """
    field = fields.find(tuple(key.split(".")))
    if field and fields.holds_text(field) and not _is_several(text, field):
        return None if text == "null" and "null" in fields.allowed(field) else text
    try:
        return yaml12.parse(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{origin}: {key} is {text!r}, which is not valid YAML") from error


def _is_several(text: str, field: FieldInfo) -> bool:
    """Whether a text is a list or a mapping in YAML, where the field may hold one."""
    is_list = text.startswith("[") and fields.holds_list(field)
    return is_list or (text.startswith("{") and fields.holds_mapping(field))


def assigned(assignments: Iterable[tuple[str, Any, str]]) -> Layer:
    """Return the layer of (dotted key, value, origin), the later the stronger."""
    layer = Layer()
    for dotted, value, origin in assignments:
        keys = tuple(dotted.split("."))
        layer.origins[keys] = origin
        for key in reversed(keys):
            value = {key: value}
        layer.values = _over(layer.values, value, ())
    return layer


def stack(*layers: Layer) -> Layer:
    """Return the layers as one, the later the stronger, key by key.

    An N:M pattern says how sparse by itself, so it displaces a sparsity that lay below it.
    """
    result = Layer()
    for layer in layers:
        merged = _over(result.values, layer.values, ())
        pattern = layer.get("prune.pattern")
        if parse_n_of_m(pattern) and layer.get("prune.sparsity") is None:
            merged["prune"] = {k: v for k, v in merged["prune"].items() if k != "sparsity"}
        result = Layer(merged, {**result.origins, **layer.origins})
    return result


def _over(lower: Any, upper: Any, keys: Keys) -> Any:
    """Return ``upper`` put over ``lower``: sections key by key, everything else replaced."""
    short = fields.shorthand(keys)
    if short and isinstance(lower, Mapping | str) and isinstance(upper, Mapping | str):
        lower, upper = ({short: v} if isinstance(v, str) else v for v in (lower, upper))
        if chooses := fields.plugin_at(keys):
            was = chooses.name_in(lower)
            if chooses.name_in(upper, was) != was or was == chooses.unnamed:
                return upper  # another method: the keys of the one below mean nothing to it
    field = fields.find(keys)
    if field and fields.holds_mapping(field):
        return upper  # sources by weight are one value: none of another layer's is mixed in
    if upper is None and isinstance(lower, Mapping):
        return lower  # a section left empty changes nothing
    if isinstance(upper, Mapping) and isinstance(lower, Mapping):
        put = {k: _over(lower[k], v, (*keys, k)) if k in lower else v for k, v in upper.items()}
        return {**lower, **put}
    # What should be a section and is none stays, to be refused by the validation.
    no_section = lower is not None and isinstance(upper, Mapping) and fields.is_section(keys)
    return lower if no_section else upper


def validate(layer: Layer) -> SppConfig:
    """Return the checked configuration.

    Raises:
        ConfigError: one line for each mistake, all of them at once.
    """
    try:
        return SppConfig.model_validate(layer.values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # A list with a wrong item counts as too short besides, which would mislead.
        telling = [d for d in details if d["type"] != "too_short" or not d["input"]]
        places = {keys: number for number, keys in enumerate(layer.origins)}  # as in the file
        telling.sort(key=lambda d: places.get(_real_keys(d["loc"], layer.values), len(places)))
        raise ConfigError(*dict.fromkeys(_line(layer, d) for d in telling)) from None


_STAGES_BELONG = (
    "The stages to run are chosen with spp run --stages; "
    "those of a sweep at the top of its file, or in one of its points"
)


def _line(layer: Layer, detail: Any) -> str:
    """Say one mistake: where, which key, what was found, what is allowed."""
    keys = _real_keys(detail["loc"], layer.values)
    origin = layer.origin(keys)
    where = f"{origin}: " if origin else ""
    dotted = ".".join(map(str, keys))
    if detail["type"] == "extra_forbidden":
        here = fields.names(keys[:-1], layer.values)
        hint = nearest(str(keys[-1]), here) or f". Allowed here: {', '.join(here)}"
        if keys[-1] == "stages":
            hint = f". {_STAGES_BELONG}"
        return f"{where}unknown key '{dotted}'{hint}"
    value, field = detail["input"], fields.find(keys, layer.values)
    if detail["type"] == "plugin" and isinstance(value, Mapping):
        value = value.get("name")
    if detail["type"] in ("plugin", "pattern", "mixture") or field is None:
        must = detail["msg"]
    elif detail["type"] in ("string_too_short", "too_short"):
        must = "must not be empty"
    else:
        allowed = fields.allowed(field, item=isinstance(detail["loc"][-1], int))
        must = f"must be {allowed.removeprefix('null or ')}{_hint(value, field)}"
    return f"{where}{dotted} is {_shown(value)}; {must}"


def _hint(value: Any, field: FieldInfo) -> str:
    if not isinstance(value, str):
        return ""
    if parse_n_of_m(value):
        return f". {value} is a pattern: set prune.pattern"
    if re.fullmatch(r"[0-9.]+ *%", value):
        return f". Write {float(value.rstrip('% ')) / 100:g}"
    return nearest(value, fields.choices(field))


def _shown(value: Any) -> str:
    """Return the value found, as a YAML file would show it, and not longer than a line."""
    text = fields.as_text(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _real_keys(loc: Keys, values: Any) -> Keys:
    """Drop what pydantic adds to a location for each member of a union, such as 'int'."""
    keys: list[str | int] = []
    for key in loc:
        inside = range(len(values)) if isinstance(values, list) else values
        if isinstance(inside, Mapping | range) and key in inside:
            values = values[key]
        elif not isinstance(values, Mapping):
            continue
        keys.append(key)
    return tuple(keys)


def dump_yaml(config: BaseModel) -> str:
    """Return the resolved configuration as YAML that reads back as an equal object."""
    return yaml12.dump(config.model_dump(mode="json"))
