"""What differs between two runs, as text: settings by kind, masks by block, results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from spp_cli.reporting.columns import error_of
from spp_cli.reporting.comparison_table import shown
from spp_cli.reporting.tables import table

__all__ = ["diff_table"]

_TITLES = {
    "model": "dense model",
    "evaluation": "evaluation: these numbers do not compare",
    "other": "the rest",
}
_LEAST = 5  # layers that are shown unless all are asked for


def diff_table(document: Mapping[str, Any], *, layers: bool) -> str:
    """Return the text of a document of ``spp_cli.difference.diff``.

    ``layers``: show the overlap of every layer, instead of blocks and the layers least alike.
    """
    names = [document["a"], document["b"]]
    parts = [
        table(
            [_TITLES.get(kind, kind), *names],
            [[entry["key"], _value(entry, "a"), _value(entry, "b")] for entry in entries],
        )
        for kind, entries in groupby(document["differences"], key=lambda entry: entry["kind"])
    ]
    masks = document["masks"]
    if masks and not (masks["same"] and not parts and not document["results"]):
        parts.append(_masks(masks, names, layers=layers))
    if document["results"]:
        rows = [
            [f"{result['stage']} {result['name']}", _number(result, "a"), _number(result, "b")]
            for result in document["results"]
        ]
        parts.append(table(["results", *names], rows))
    if document["not_compared"]:
        unlike = ", ".join(document["not_compared"])
        parts.append(f"not compared, as measured differently: {unlike}")
    return "\n\n".join(parts) or f"{names[0]} and {names[1]} do not differ"


def _value(entry: Mapping[str, Any], side: str) -> str:
    if side not in entry:
        return "not set"
    value = entry[side]
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return re.sub(r"\b([0-9a-f]{8})(?:[0-9a-f]{8}|[0-9a-f]{56})\b", r"\1", text)  # digests


def _number(result: Mapping[str, Any], side: str) -> str:
    name, error = result["name"], result.get(f"{side}_stderr")
    return shown(name, result[side], {} if error is None else {error_of(name): error})


def _masks(masks: Mapping[str, Any], names: Sequence[str], *, layers: bool) -> str:
    if masks["same"]:
        return "masks: the same"
    if "problem" in masks:
        return f"masks: {masks['problem']}"
    overall = masks["overall"]
    said = (
        f"masks: of what one keeps, the other keeps {overall['common']:.1%} too "
        f"(by chance {overall['by_chance']:.1%}); |A∩B|/|A∪B| is {overall['jaccard']:.3f}"
    )
    unmatched = [
        f"{count} layers of {name} are not in the other"
        for name, count in zip(names, masks["unmatched"], strict=True)
        if count
    ]
    part = "layers" if layers else "blocks"
    parts = ["; ".join([said, *unmatched]), _overlaps(part[:-1], masks[part], names)]
    if not layers:
        least = sorted(masks["layers"], key=lambda layer: layer["jaccard"])[:_LEAST]
        parts.append(_overlaps("least alike", least, names))
    return "\n\n".join(parts)


def _overlaps(title: str, found: Iterable[Mapping[str, Any]], names: Sequence[str]) -> str:
    rows = [
        [
            one["name"],
            *(f"{one[key] / one['size']:.4f}" for key in ("kept_a", "kept_b")),
            f"{one['common']:.1%}",
            f"{one['jaccard']:.3f}",
        ]
        for one in found
    ]
    header = [title, *(f"kept in {name}" for name in names), "in common", "|A∩B|/|A∪B|"]
    return table(header, rows)
