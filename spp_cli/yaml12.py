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
_LONGEST, _MOST = 4_000_000, 200_000  # characters of a document, and values


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - the base class's attribute


for _type, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _type, re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor(
    f"{_TAG}int",
    lambda loader, node: int(loader.construct_scalar(node)),  # type: ignore[arg-type]
)


def parse(text: str) -> Any:
    """Return what a YAML document says, as plain Python values.

    Raises:
        yaml.YAMLError: it is none, or is larger than any configuration, its aliases written out.
        RecursionError: it is nested too deep, or an alias contains itself.
    """
    node = compose(text)
    return None if node is None else _Loader("").construct_document(node)


def compose(text: str) -> yaml.Node | None:
    """Return a YAML document as nodes that know their lines; None if it is empty.

    Raises what ``parse`` raises.
    """
    if len(text) > _LONGEST:
        raise yaml.YAMLError(f"longer than {_LONGEST:,} characters")
    node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    if node is not None and _size(node, {}) > _MOST:
        raise yaml.YAMLError(f"more than {_MOST:,} values with its aliases written out")
    return node


def _size(node: yaml.Node, sizes: dict[yaml.Node, int]) -> int:
    """Check the scalars of a node, and return its values, those of an alias counted each time.

    A short text may stand for 10^12 of them.
    """
    if node not in sizes:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        else:
            _check_scalar(node)
        sizes[node] = 1 + sum(_size(each, sizes) for each in inner)
    return sizes[node]


def _check_scalar(node: yaml.Node) -> None:
    """Refuse a value that its tag does not allow, and a text that can be neither text nor path."""
    problem = ""
    try:
        if node.tag != f"{_TAG}merge":
            _Loader("").construct_object(node)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        shown = node.value if len(node.value) <= 40 else f"{node.value[:37]}..."
        problem = f"{shown!r} cannot be read as {node.tag.removeprefix(_TAG)}"
    if any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in node.value):
        problem = "a text with a NUL or with half a surrogate pair"
    if problem:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


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
