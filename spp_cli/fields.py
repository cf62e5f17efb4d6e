"""The keys of the configuration, each with its type, default and range in words, as the models say.

Help texts, error messages and the README's reference are made from these.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from spp_cli.config import Checked, Plugin, SppConfig

Keys = tuple[str | int, ...]
_LIMITS = {
    annotated_types.Gt: ("gt", "above {}"),
    annotated_types.Ge: ("ge", "of at least {}"),
    annotated_types.Lt: ("lt", "below {}"),
    annotated_types.Le: ("le", "of at most {}"),
}


def walk(model: type[BaseModel] = SppConfig, parent: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key that holds a value, dotted, in the order of the YAML."""
    for name, field in model.model_fields.items():
        section = section_type(field.annotation)
        if section:
            yield from walk(section, f"{parent}{name}.")
        else:
            yield f"{parent}{name}", field


def find(keys: Keys, values: Any = None) -> FieldInfo | None:
    """Return the field at ``keys``; None if there is none. An item of a list has the list's field.

    ``values`` is the configuration that the keys belong to: it says which method's keys to look at.
    """
    model: type[BaseModel] | None = SppConfig
    field = None
    for key in keys:
        if isinstance(key, int):
            break
        values = values.get(key) if isinstance(values, Mapping) else None
        field = model.model_fields.get(key) if model else None
        if field is None:
            return None
        model = _section(field, values)
    return field


def names(keys: Keys, values: Any = None) -> list[str]:
    """Return the keys that the section at ``keys`` may have; none if it is not a section."""
    field = find(keys, values)
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    section = _section(field, values) if field else SppConfig if not keys else None
    return list(section.model_fields) if section else []


def shorthand(keys: Keys) -> str | None:
    """Return the key that a text in place of the section at ``keys`` stands for: path, name."""
    field = find(keys)
    section = section_type(field.annotation) if field else None
    return "name" if plugin_at(keys) else getattr(section, "short", None)


def is_section(keys: Keys) -> bool:
    """Whether keys stand below ``keys``: a section, or a method with its own keys."""
    field = find(keys)
    return bool(field and (section_type(field.annotation) or plugin(field)))


def plugin_at(keys: Keys) -> Plugin | None:
    """Return what the field at ``keys`` chooses from, if it names a method or an adapter."""
    field = find(keys)
    return plugin(field) if field else None


def plugin(field: FieldInfo) -> Plugin | None:
    """Return what a field that names a method or an adapter chooses from; None for others."""
    return next((mark for mark in field.metadata if isinstance(mark, Plugin)), None)


def section_type(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field of this type holds; None for a plain value."""
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None


def _section(field: FieldInfo, values: Any) -> type[BaseModel] | None:
    chooses = plugin(field)
    if chooses is None:
        return section_type(field.annotation)
    name = chooses.name_in(values) if isinstance(values, Mapping) else values
    known = isinstance(name, str) and name in chooses.table()
    return chooses.load(str(name)) if known else None


def holds_text(field: FieldInfo) -> bool:
    """Whether a value is text (or several texts) as it stands, so that 123 is no number."""
    return _types(field.annotation) <= {str, tuple, dict}


def holds_list(field: FieldInfo) -> bool:
    """Whether the value is a list."""
    return tuple in _types(field.annotation)


def holds_mapping(field: FieldInfo) -> bool:
    """Whether the value may be a mapping of the user's own keys, which is no section."""
    return dict in _types(field.annotation)


def _types(annotation: Any) -> set[Any]:
    """Return the plain types that ``annotation`` is made of, None left out; a Literal is text."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return set().union(*map(_types, get_args(annotation)))
    if origin is Annotated:
        return _types(get_args(annotation)[0])
    return {str if origin is Literal else origin or annotation} - {type(None)}


def choices(field: FieldInfo) -> list[str]:
    """Return the words to choose from, of a field that has no other values but null."""
    return list(_words(field.annotation))


def _words(annotation: Any) -> Iterator[str]:
    is_literal = get_origin(annotation) is Literal
    for member in get_args(annotation):
        yield from [str(member)] if is_literal else _words(member)


def allowed(field: FieldInfo, *, item: bool = False) -> str:
    """Return in words what may stand in a field, e.g. "a number above 0 and below 1".

    ``item`` asks for one item of a field that holds a list.
    """
    section, chooses = section_type(field.annotation), plugin(field)
    if section:
        return f"a section with the keys {', '.join(section.model_fields)}"
    if chooses:
        return _either(chooses.table())
    annotation = get_args(field.annotation)[0] if item else field.annotation
    return _either(_in_words(annotation, () if item else field.metadata))


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _in_words(annotation: Any, metadata: Iterable[Any]) -> list[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        null_first = sorted(arguments, key=lambda member: member is not type(None))
        return [words for member in null_first for words in _in_words(member, metadata)]
    if origin is Annotated:
        return _in_words(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return list(map(str, arguments))
    if origin is tuple:
        items = _in_words(arguments[0], ())
        return [f"a list of {_either(items)}" if len(items) > 1 else "a list of texts"]
    if origin is dict:
        return ["a mapping of texts to weights above 0"]
    marks = list(_flat(metadata))
    checked = [mark.allowed for mark in marks if isinstance(mark, Checked)]
    if checked:
        return checked
    plain = {float: "a number", int: "a whole number", bool: "true or false", type(None): "null"}
    limits = [
        words.format(getattr(mark, attribute))
        for kind, (attribute, words) in _LIMITS.items()
        for mark in marks
        if isinstance(mark, kind) and annotation in (int, float)
    ]
    return [f"{plain.get(annotation, 'text')} {' and '.join(limits)}".rstrip()]


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    """Yield the single marks; a pydantic Field inside Annotated carries several."""
    for mark in metadata:
        yield from mark.metadata if isinstance(mark, FieldInfo) else (mark,)


def default(field: FieldInfo) -> Any:
    """Return a field's default as the YAML would hold it."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return None
    return list(value) if isinstance(value, tuple) else value


def as_text(value: Any) -> str:
    """Return a value as a user would write it after ``--set key=``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value)) or "[]"
    return f"{value:g}" if isinstance(value, float) else str(value)
