"""Which numbers of which rows cannot be compared, and why: said in words, never left to guess."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["reasons"]

Row = Mapping[str, Any]
_OUTDATED = "model: the {stage} of run {run} was made anew since; measure it: spp eval --run {run}"
_OF_A_TASK = {
    "harness": "harness",
    "version": "version",
    "shots": "num_fewshot",
    "questions": "samples",
    "chat template": "chat_template",
    "data": "data",
}
_ABSENT = object()  # a row that has no such measurement has no setting of it either


def reasons(rows: Sequence[Row]) -> list[list[str]]:
    """Return for each row why it cannot be compared with the reference.

    The reference is, setting by setting, the one that most rows have; of equally many the first.
    A reason begins with what it concerns: "model", "perplexity", the name of a perplexity
    ("perplexity@256") or of a task; then come both values: "next-line: questions 8, not 200".
    """
    found = [[_OUTDATED.format(**row)] if row["outdated"] else [] for row in rows]
    _compare(rows, found, "model", "", _model)
    _compare(rows, found, "perplexity", "", _lengths)
    for name in dict.fromkeys(name for row in rows for name in row["perplexity"]):
        _compare(rows, found, name, "tokens ", _of("perplexity", name, "digest", _text))
    # What is told of a group holds for its members.
    tasks = (item for row in rows for item in row["tasks"].items())
    for name in dict.fromkeys(name for name, task in tasks if task.get("group") is None):
        for noun, key in _OF_A_TASK.items():
            _compare(rows, found, name, f"{noun} ", _of("tasks", name, key, _plain(key)))
    return found


def _compare(
    rows: Sequence[Row],
    found: list[list[str]],
    concerned: str,
    noun: str,
    setting: Callable[[Row], tuple[Any, str]],
) -> None:
    """Note each row whose setting, told by ``setting`` as value and words, is not the usual one."""
    settings = [setting(row) for row in rows]
    present = [value for value, _ in settings if value is not _ABSENT]
    if not present:
        return
    usual = Counter(present).most_common(1)[0][0]  # of equals it gives the first
    words = next(text for value, text in settings if value == usual)
    for place, (value, text) in enumerate(settings):
        if value is not _ABSENT and value != usual:
            found[place].append(f"{concerned}: {noun}{text}, not {words}")


def _model(row: Row) -> tuple[Any, str]:
    digest = row["model_digest"]
    return digest, f"{row['model']} ({digest[:8] or 'no digest'})"


def _lengths(row: Row) -> tuple[Any, str]:
    lengths = tuple(sorted(found["length"] for found in row["perplexity"].values()))
    if not lengths:
        return _ABSENT, ""
    return lengths, f"at {' and '.join(map(str, lengths))} tokens"


def _of(
    kind: str, name: str, key: str, words: Callable[[Mapping[str, Any]], str]
) -> Callable[[Row], tuple[Any, str]]:
    def setting(row: Row) -> tuple[Any, str]:
        found = row[kind].get(name)
        return (_ABSENT, "") if found is None else (found.get(key), words(found))

    return setting


def _text(found: Mapping[str, Any]) -> str:
    return f"{found['digest'][:8]} of {found['source']}, {found['tokens']} in all"


def _plain(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda found: "unknown" if found.get(key) is None else str(found[key])
