"""The columns of a comparison: what each is called, and rows chosen and ordered by them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from spp_cli.config import nearest
from spp_cli.errors import ConfigError

__all__ = [
    "RECIPE", "are_columns", "cells", "check", "error_of", "filtered", "headline",
    "measured", "measured_by", "ordered", "split", "without_settings",
]  # fmt: skip

Row = Mapping[str, Any]
RECIPE = (
    "model",
    "method",
    "pattern",
    "target_sparsity",
    "allocation",
    "refine",
    "recover",
    "order",
    "adapter",
)
_IDENTITY = ("run", "stage", "model", "model_digest", *RECIPE[1:], "sparsity")
_ERROR = "_stderr"
_NOTES = ("runs", "incomparable")
_COSTS = ("bytes_packed", "minutes", "stage_minutes", "peak_memory_bytes")
_FILTER = re.compile(r"\s*([^<>=!~]*?)\s*(<=|>=|!=|==?|<|>|~)\s*(.*?)\s*", re.DOTALL)
_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda found, wanted: found < wanted,
    "<=": lambda found, wanted: found <= wanted,
    ">": lambda found, wanted: found > wanted,
    ">=": lambda found, wanted: found >= wanted,
}


def cells(row: Row) -> dict[str, Any]:
    """Return the values of a row of ``spp_cli.comparison`` by column; None: it has none there.

    Measurements go by their names: "perplexity@256", with ".nats", ".source" and ".digest" of its
    tokens behind it; "next-line.acc" and "next-line.acc_stderr"; "recovered" of the first of them,
    "recovered.next-line" of each. Settings go by their keys.
    """
    return {name: value for part in _PARTS for name, value in part(row).items()}


def are_columns(words: Sequence[str]) -> bool:
    """Whether words could be the columns of a comparison, of these rows or of others.

    Keys and scores have a dot between their words; among them is one that no other table has.
    """
    plain = (*_IDENTITY, *_COSTS, *_NOTES, "recovered", "zeroshot", error_of("zeroshot"), "seed")
    ours = [word in plain or bool(re.fullmatch(r"perplexity@\d+", word)) for word in words]
    dotted = r"[A-Za-z_][\w@,|-]*(\.[\w@,|-]+)+"
    return any(ours) and all(
        own or re.fullmatch(dotted, word) for own, word in zip(ours, words, strict=True)
    )


def known(rows: Sequence[Row]) -> list[str]:
    """Return the names of all columns that the rows have, in order."""
    names = (name for part in _PARTS for row in rows for name in part(row))
    return list(dict.fromkeys(names))


def without_settings(rows: Sequence[Row]) -> list[str]:
    """Return the names of all columns but those that are keys of the configuration."""
    keys = {key for row in rows for key in row["settings"]}
    return [name for name in known(rows) if name not in keys]


def measured(rows: Iterable[Row]) -> list[str]:
    """Return the names of the columns of perplexities, accuracies and other scores."""
    names = (name for row in rows for name in _perplexities(row) | _scores(row))
    beside = (".nats", ".source", ".digest")
    return [name for name in dict.fromkeys(names) if not (_ERROR in name or name.endswith(beside))]


def headline(rows: Sequence[Row]) -> list[str]:
    """Return those of ``measured`` by which a model is judged: of a task acc, or what it has.

    Members of a group, such as the 57 of mmlu, are left to be asked for.
    """
    members = {
        name for row in rows for name, task in row["tasks"].items() if task.get("group") is not None
    }
    names = [name for name in measured(rows) if name.rpartition(".")[0] not in members]
    return [
        name
        for name in names
        if name.rpartition(".")[2] == "acc" or f"{name.rpartition('.')[0]}.acc" not in names
    ]


def error_of(name: str) -> str:
    """Return the column of a score's standard error; the harness may put a filter behind both."""
    metric, comma, way = name.partition(",")
    return f"{metric}{_ERROR}{comma}{way}"


def measured_by(name: str, row: Row) -> str:
    """Return the column of the measurement that a share recovered is of; any other as it is."""
    if name == "recovered":
        return next(iter(row["recovered"]), name)
    return name.removeprefix("recovered.")


def split(text: str, rows: Sequence[Row]) -> list[str]:
    """Return the columns in "run,-sparsity"; a comma may be in the name of one as well."""
    names, parts = known(rows), [""]
    for part in map(str.strip, text.split(",")):
        whole = f"{parts[-1]},{part}"
        if whole.removeprefix("-") in names:
            parts[-1] = whole
        else:
            parts.append(part)
    return list(filter(None, parts))


def _identity(row: Row) -> dict[str, Any]:
    return {key: row[key] for key in _IDENTITY}


def _perplexities(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in row["perplexity"].items():
        found[name] = text["perplexity"]
        found |= {f"{name}.{key}": text[key] for key in ("nats", "source", "digest")}
    return found


def _scores(row: Row) -> dict[str, Any]:
    means = {name: row.get(name) for name in ("zeroshot", f"zeroshot{_ERROR}")}
    found = {name: mean for name, mean in means.items() if mean is not None}
    for name, task in row["tasks"].items():
        found |= {f"{name}.{metric}": value for metric, value in task["metrics"].items()}
    return found


def _recovered(row: Row) -> dict[str, Any]:
    shares = row["recovered"]
    each = {f"recovered.{name}": share for name, share in shares.items()}
    return {"recovered": next(iter(shares.values()), None), **each}


def _costs(row: Row) -> dict[str, Any]:
    return {key: row[key] for key in _COSTS}


def _notes(row: Row) -> dict[str, Any]:
    return {"runs": " ".join(row["runs"]), "incomparable": "; ".join(row["incomparable"]) or None}


def _settings(row: Row) -> dict[str, Any]:
    return dict(row["settings"])


_PARTS = (_identity, _perplexities, _scores, _recovered, _costs, _notes, _settings)


def check(name: str, rows: Sequence[Row], flag: str) -> str:
    """Return the name of a column.

    Raises:
        ConfigError: no row has it; with the nearest and all that there are.
    """
    names = known(rows)
    if name in names:
        return name
    listed = ", ".join(without_settings(rows))
    hint = nearest(name, names).removeprefix(". ")
    raise ConfigError(
        f"{flag} names {name!r}, an unknown column. {hint}{' ' if hint else ''}"
        f"Columns: {listed}, and the keys of settings, such as prune.calibration.samples"
    )


def ordered(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Return the rows sorted by columns, the first counting most; "-minutes" is descending.

    Rows without a value come last either way, numbers before texts; equal ones keep their order.
    """
    result = list(rows)
    for key in reversed(keys):
        name = check(key.removeprefix("-"), rows, "--sort")
        result = _by_column(result, name, descending=key.startswith("-"))
    return result


def _by_column(rows: Sequence[Row], name: str, *, descending: bool) -> list[Row]:
    values = [cells(row).get(name) for row in rows]
    there = [place for place, value in enumerate(values) if value is not None]
    absent = [place for place, value in enumerate(values) if value is None]
    there.sort(key=lambda place: _rank(values[place]), reverse=descending)
    return [rows[place] for place in there + absent]


def _rank(value: Any) -> tuple[bool, float, str]:
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if is_number else 0, "" if is_number else str(value)


def filtered(rows: Sequence[Row], expressions: Iterable[str]) -> list[Row]:
    """Return the rows that pass every expression, such as "sparsity >= 0.5" or "run ~ opt-*".

    A row without a value in the column passes only "!=", or "=" with nothing behind it.

    Raises:
        ConfigError: not COLUMN OP VALUE, an unknown column, or a text where a number is compared.
    """
    passing = list(rows)
    for expression in expressions:
        match = _FILTER.fullmatch(expression)
        if not match or not match[1]:
            raise ConfigError(
                f"--filter {expression!r}: must be COLUMN OP VALUE with one of "
                "=, !=, <, <=, >, >=, ~ (glob), for example 'sparsity >= 0.5'"
            )
        name, operator, wanted = match.groups()
        flag = f"--filter {expression!r}"
        check(name, rows, flag)
        passing = [row for row in passing if _passes(cells(row).get(name), operator, wanted, flag)]
    return passing


def _passes(found: Any, operator: str, wanted: str, flag: str) -> bool:
    if operator in _ORDERS:
        limit = _as_number(wanted)
        if found is None and limit is not None:
            return False
        if limit is None or not isinstance(found, int | float):
            raise ConfigError(f"{flag}: {operator} compares numbers, and one side is a text")
        return _ORDERS[operator](found, limit)
    if operator == "~":
        return found is not None and fnmatchcase(str(found), wanted)
    return _equals(found, wanted) != (operator == "!=")


def _equals(found: Any, wanted: str) -> bool:
    if found is None:
        return not wanted
    if isinstance(found, int | float) and not isinstance(found, bool):
        return found == _as_number(wanted)
    return str(found) == wanted


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
