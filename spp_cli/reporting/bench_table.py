"""What ``spp bench`` measured, as a table and a few sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spp_cli.reporting.tables import binary_size, table

__all__ = ["bench_table"]

_HEADER = ["batch", "way", "prefill tok/s", "to dense", "decode tok/s", "to dense", "peak"]
_PHASES = ("prefill", "decode")


def bench_table(document: Mapping[str, Any]) -> str:
    """Return what was measured how, a line for each batch size and way, and what they store."""
    ways = document["ways"]
    rows = [
        _row(way["way"], result, document)
        for results in zip(*(way["results"] for way in ways), strict=True)
        for way, result in zip(ways, results, strict=True)
    ]
    where = f"{document['device']}, {document['threads']} threads, {document['dtype']}"
    head = [
        f"{document['model']}: {document['sparsity']:.1%} zeros in {document['pruned_linears']} "
        f"linears; {where}",
        f"{document['prompt_length']} tokens of prompt, {document['new_tokens']} new ones; medians "
        f"of {document['repeats']} runs that took turns (slowest–fastest)",
    ]
    notes = [_note(way, document) for way in ways]
    notes += [f"{each['way']} is left out: {each['reason']}" for each in document["skipped"]]
    return "\n".join([*head, "", table(_HEADER, rows), "", *notes])


def _row(way: str, result: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    size = result["batch_size"]
    if "failed" in result:
        return [str(size), way, result["failed"], *[""] * (len(_HEADER) - 3)]
    lengths = {"prefill": document["prompt_length"], "decode": document["new_tokens"]}
    cells = [
        cell
        for phase, length in lengths.items()
        for cell in _speed(result[phase], size * length, is_dense=way == "dense")
    ]
    peak = result["peak_bytes"]
    return [str(size), way, *cells, "–" if peak is None else binary_size(peak)]


def _speed(speed: Mapping[str, Any], tokens: int, *, is_dense: bool) -> list[str]:
    fastest, slowest = (tokens / seconds for seconds in speed["range"])
    spread = f"{slowest:,.0f}–{fastest:,.0f}"
    against = "" if is_dense else "–"
    if not is_dense and speed["against_dense"] is not None:
        against = f"{speed['against_dense']:.2f}×, {speed['verdict']}"
    return [f"{speed['tokens_per_second']:,.0f} ({spread})", against]


def _note(way: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Return what a way stores, whether it computes the same, and where it is slower."""
    text = f"{way['way']}: these linears take {binary_size(way['bytes'])}"
    if way["way"] == "dense":
        return text
    text += f", {way['against_dense']:.2f} of dense"
    if (missing := document["pruned_linears"] - way["linears"]) > 0:
        text += f"; {missing} of them cannot be held so and stay dense"
    difference = way["largest_difference"]
    same = "equal to the bit" if not difference else f"within {difference:.2g}"
    verdicts = ", ".join(f"{phase} is {_verdicts(way['results'], phase)}" for phase in _PHASES)
    return f"{text}; logits are {same}; {verdicts}"


def _verdicts(results: Sequence[Mapping[str, Any]], phase: str) -> str:
    """Return "slower at batch 1, 4 and unclear at batch 16"."""
    sizes: dict[str, list[str]] = {}
    for result in results:
        verdict = result.get(phase, {}).get("verdict") or "not known"
        sizes.setdefault(verdict, []).append(str(result["batch_size"]))
    if len(sizes) == 1:
        return next(iter(sizes))
    return " and ".join(f"{verdict} at batch {', '.join(at)}" for verdict, at in sizes.items())
