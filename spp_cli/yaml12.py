"""YAML without its traps: ``2:4`` is a text, ``1e-4`` a number, ``no`` a word, ``010`` is ten.

PyYAML reads YAML 1.1, where they are 124, a text, False and eight. Here scalars are those of YAML
1.2, and what is written here means the same to readers of both.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_SCALARS = (  # type, what it looks like, the characters it may begin with
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", ["<"]),
)
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - the base class's attribute


for _type, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _type, re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor(
    f"{_TAG}int",
    lambda loader, node: int(loader.construct_scalar(node)),  # type: ignore[arg-type]
)


def parse(text: str) -> Any:
    """Return what a YAML document says, as plain Python values; yaml.YAMLError if it is none."""
    return yaml.load(text, Loader=_Loader)


def compose(text: str) -> yaml.Node | None:
    """Return a YAML document as nodes that know their lines; None if it is empty."""
    node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    return node


def is_word(node: yaml.Node) -> bool:
    """Whether a node is a plain text, and thus fit to be a key; ``<<`` is too."""
    return node.tag in (f"{_TAG}str", f"{_TAG}merge") and isinstance(node, yaml.ScalarNode)


def dump(values: Any) -> str:
    """Return plain values as YAML, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quote what the loader above would take for a number; the base class quotes the rest."""
    style = "'" if any(re.fullmatch(pattern, text) for _, pattern, _ in _SCALARS) else None
    if "\x85" in text:  # a line break to PyYAML, lost in all but an escape
        style = '"'
    return dumper.represent_scalar(f"{_TAG}str", text, style)


def _write_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    """Write 1e-05 as 1.0e-05: without the point it is a text in YAML 1.1."""
    text = re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    return dumper.represent_scalar(f"{_TAG}float", text)


_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(float, _write_float)
