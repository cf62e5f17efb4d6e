"""Which numbers were measured alike: only those are compared, wherever numbers are compared.

What a number was measured with stands in its result: ``alike`` looks at two of them, ``unlike`` and
``reasons`` say in words what differs among many, ``recovered`` judges what came back.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spp_cli.reporting.columns import error_of

__all__ = ["alike", "judged_by", "reasons", "recovered", "unlike"]

Row = Mapping[str, Any]
Result = Mapping[str, Any]
_OUTDATED = "model: the {stage} of run {run} was made anew since; measure it: spp eval --run {run}"
# What decides a number but the model, by what it is called in a reason.
_OF_A_TEXT = {"device": "device"}
_OF_A_TASK = {
    "harness": "harness",
    "version": "version",
    "shots": "num_fewshot",
    "questions": "samples",
    "chat template": "chat_template",
    "data": "data",
    "definition": "definition",
    "device": "device",
}
_DECIDING = ("digest", "length", "tasks", "members", *_OF_A_TASK.values())
_NEWER = ("definition", "device", "members")  # results of earlier versions do not have them
_SURE = 2  # standard errors: less is no loss that was measured
_ABSENT = object()  # a row that has no such measurement has no setting of it either


def alike(a: Result, b: Result) -> bool:
    """Whether two results of one name were measured in the same way, so that they compare."""
    return all(
        a.get(key) == b.get(key) or (key in _NEWER and None in (a.get(key), b.get(key)))
        for key in _DECIDING
    )


def recovered(models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return, for finetune and merge, the share of what pruning lost that came back, by task.

    (pruned − now) / (pruned − dense), perplexity in nats; 1 is all of it. None where the three were
    not measured alike, or pruning lost no more than twice the standard error of the measurement.

    Args:
        models: ``models`` of a results.json, by dense, prune, finetune and merge.
    """
    shares: dict[str, dict[str, float | None]] = {}
    for stage in ("finetune", "merge"):
        if {"dense", "prune", stage} <= set(models):
            dense, pruned, now = (models[name]["results"] for name in ("dense", "prune", stage))
            shares[stage] = {
                task: _share(dense[task], pruned[task], now[task])
                for task in now
                if task in dense and task in pruned
            }
    return shares


def _share(dense: Result, pruned: Result, now: Result) -> float | None:
    if not (alike(dense, now) and alike(pruned, now)):
        return None
    lost = _loss(pruned) - _loss(dense)
    if not lost > _SURE * _error_of_difference(dense, pruned):
        return None
    return (_loss(pruned) - _loss(now)) / lost


def judged_by(result: Result) -> str:
    """Return the metric by which a task is judged: acc, or the first that it has."""
    metrics = result["metrics"]
    return "acc" if "acc" in metrics else next(name for name in metrics if "_stderr" not in name)


def _loss(result: Result) -> float:
    """Return the one number by which a result is judged, so that less is better."""
    if "nats" in result:
        return float(result["nats"])
    metric = judged_by(result)
    value = float(result["metrics"][metric])
    higher_is_better = result.get("higher_is_better", {}).get(metric.partition(",")[0], True)
    return -value if higher_is_better else value


def _error_of_difference(a: Result, b: Result) -> float:
    """Return the standard error of the difference of two results; 0 where none is known.

    Two perplexities of one text vary together: the error is that of the differences by part. The
    errors that the harness gives of two accuracies count as if they were independent.
    """
    if "nats" in a:
        parts = a.get("parts", ()), b.get("parts", ())
        if len(parts[0]) != len(parts[1]) or len(parts[0]) < 2:
            return 0.0
        differences = [one - other for one, other in zip(*parts, strict=True)]
        return statistics.stdev(differences) / math.sqrt(len(differences))
    errors = [result["metrics"].get(error_of(judged_by(result))) for result in (a, b)]
    return math.hypot(*(error for error in errors if error is not None))


def reasons(rows: Sequence[Row]) -> list[list[str]]:
    """Return for each row why it cannot be compared with the reference.

    The reference is, setting by setting, the one that most rows have; of equally many the first.
    A reason begins with what it concerns: "model", "perplexity", the name of a perplexity
    ("perplexity@256") or of a task; then come both values: "next-line: questions 8, not 200".
    """
    found = [[_OUTDATED.format(**row)] if row["outdated"] else [] for row in rows]
    _compare(rows, found, "model", "", _model)
    _compare(rows, found, "perplexity", "", _lengths)
    _compare_measurements(rows, found)
    return found


def unlike(models: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return for each of ``models`` of one results.json which results are not as the others are.

    The reasons are such as ``reasons`` gives; models that have none are left out.
    """
    rows = [
        {
            "perplexity": {name: it for name, it in model["results"].items() if "nats" in it},
            "tasks": {name: it for name, it in model["results"].items() if "samples" in it},
        }
        for model in models.values()
    ]
    found: list[list[str]] = [[] for _ in rows]
    _compare_measurements(rows, found)
    return {name: why for name, why in zip(models, found, strict=True) if why}


def _compare_measurements(rows: Sequence[Row], found: list[list[str]]) -> None:
    for name in dict.fromkeys(name for row in rows for name in row["perplexity"]):
        _compare(rows, found, name, "tokens ", _of("perplexity", name, "digest", _text))
        for noun, key in _OF_A_TEXT.items():
            _compare(rows, found, name, f"{noun} ", _of("perplexity", name, key, _plain(key)))
    # What is told of a group holds for its members.
    tasks = (item for row in rows for item in row["tasks"].items())
    for name in dict.fromkeys(name for name, task in tasks if task.get("group") is None):
        for noun, key in _OF_A_TASK.items():
            _compare(rows, found, name, f"{noun} ", _of("tasks", name, key, _plain(key)))


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
        if found is None or (key in _NEWER and found.get(key) is None):
            return _ABSENT, ""
        return found.get(key), words(found)

    return setting


def _text(found: Mapping[str, Any]) -> str:
    return f"{found['digest'][:8]} of {found['source']}, {found['tokens']} in all"


def _plain(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda found: "unknown" if found.get(key) is None else str(found[key])
