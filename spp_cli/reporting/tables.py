"""Results as plain text tables: evaluations, the state of runs, the check of a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spp_cli.comparability import alike, unlike
from spp_cli.foreign import one_line
from spp_cli.reporting.columns import error_of
from spp_cli.reporting.terminal import duration

__all__ = [
    "TITLES",
    "binary_size",
    "calibration_table",
    "evaluation_cells",
    "evaluation_table",
    "plan_table",
    "run_table",
    "stage_cells",
    "status_table",
    "table",
    "trials_table",
    "verify_table",
    "whereabouts_table",
]

TITLES = {"dense": "dense", "prune": "pruned", "finetune": "finetuned", "merge": "merged"}
_ERROR = "_stderr"
_NOTHING = "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns of equal width, the first to the left and the others to the right."""
    rows = [list(map(one_line, row)) for row in rows]
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = [list(header), ["-" * width for width in widths], *map(list, rows)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def evaluation_table(document: Mapping[str, Any]) -> str:
    """Return the table of an evaluation as text, from a results.json, with its notes below."""
    header, rows, notes = evaluation_cells(document)
    return "\n".join([table(header, rows), *([""] if notes else []), *notes])


def evaluation_cells(
    document: Mapping[str, Any],
) -> tuple[list[str], list[list[str]], list[str]]:
    """Return header, rows and notes: dense | pruned | finetuned | merged | recovered.

    ``document`` is a results.json: ``models`` with the results of each, and ``recovered``, the
    share of what pruning lost that came back, or None where that cannot be said. Of a group its own
    row is shown and those of its direct members. Numbers that were not measured as the others of
    their row have a mark, and a note that says what differs.
    """
    models: Mapping[str, Any] = document["models"]
    shares = list(document.get("recovered", {}).values())
    share: Mapping[str, float | None] = shares[-1] if shares else {}
    differing = unlike(models)
    reasons = dict.fromkeys(reason for found in differing.values() for reason in found)
    marks = {reason: f"*{number}" for number, reason in enumerate(reasons, start=1)}
    tasks = dict.fromkeys(
        task
        for model in models.values()
        for task in model["results"]
        if not _is_deep(task, model["results"])
    )
    rows = [
        ["sparsity", *(_number(model.get("sparsity"), 4) for model in models.values()), ""],
        [
            "non-zero weights",
            *(_count(model.get("nonzero_parameters")) for model in models.values()),
            "",
        ],
    ]
    for task in tasks:
        for place, metric in enumerate(_metrics(models, task)):
            cells = [
                _measured(model["results"].get(task), metric)
                + "".join(marks[why] for why in differing.get(name, ()) if _is_of(why, task, model))
                for name, model in models.items()
            ]
            won_back = _share(share.get(task)) if shares and place == 0 else ""
            rows.append([f"{task} {metric}".rstrip(), *cells, won_back])
    header = ["", *(TITLES.get(name, name) for name in models), "recovered" if shares else ""]
    notes = [f"{mark} {reason}" for reason, mark in marks.items()]
    return header, rows, [*notes, *_changed_by_merging(models)]


def _changed_by_merging(models: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note for each perplexity, as it is shown, that a merge has changed."""
    found = [models[stage]["results"] for stage in ("finetune", "merge") if stage in models]
    for task in found[0] if len(found) == 2 else ():
        before, after = (results.get(task, {}) for results in found)
        if "nats" in before and "nats" in after and alike(before, after):
            shown = [_measured(each, "") for each in (before, after)]
            if shown[0] != shown[1]:
                change = after["perplexity"] / before["perplexity"] - 1
                yield (
                    f"{task}: merged is {change:+.2%} from finetuned, which is what rounding the "
                    "merged weights changes (merge.rounding, merge.dtype)"
                )


def _is_of(reason: str, task: str, model: Mapping[str, Any]) -> bool:
    """Whether a reason of ``comparability`` speaks of this task, or of the group that it is in."""
    about = reason.partition(": ")[0]
    found = model["results"].get(task, {})
    return about in (task, found.get("group")) or about in found.get("tasks", ())


def _share(value: float | None) -> str:
    return _NOTHING if value is None else f"{round(100 * value)}%"


def _is_deep(task: str, results: Mapping[str, Any]) -> bool:
    """Whether a task is in a group that is in a group: of mmlu's 61 members 57 are."""
    group = results[task].get("group")
    return results.get(group, {}).get("group") is not None


def _metrics(models: Mapping[str, Any], task: str) -> list[str]:
    """Return the names of a task's metrics, without their errors; "" stands for a perplexity."""
    results = [model["results"][task] for model in models.values() if task in model["results"]]
    names = dict.fromkeys(name for result in results for name in result.get("metrics", {""}))
    return [name for name in names if _ERROR not in name]


def _count(parameters: int | None) -> str:
    """Return "2.19 M": all parameters that are not zero, embeddings and norms included."""
    if parameters is None:
        return _NOTHING
    sign, unit = next(
        (item for item in (("B", 1e9), ("M", 1e6)) if parameters >= item[1]), ("k", 1e3)
    )
    return f"{parameters / unit:.2f} {sign}"


def _measured(result: Mapping[str, Any] | None, metric: str) -> str:
    if result is None:
        return _NOTHING
    if not metric:
        return _number(result["perplexity"], 2)
    error = result["metrics"].get(error_of(metric))
    uncertain = "" if error is None else f" ± {error:.3f}"
    return f"{_number(result['metrics'].get(metric), 3)}{uncertain}"


def status_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one line a run, as ``spp status`` shows them.

    Each row has ``run``, ``stages`` (state by stage), and ``sparsity``, ``block_sparsity``,
    ``perplexity`` and ``recovered``, which may be None.
    """
    stages = list(rows[0]["stages"])
    return table(
        ["run", *stages, "sparsity", "of blocks", "perplexity dense → pruned → now", "recovered"],
        [
            [
                row["run"],
                *(_state(row["stages"][stage]) for stage in stages),
                _number(row["sparsity"], 4),
                _number(row["block_sparsity"], 4),
                _perplexity(row["perplexity"]),
                _share(row["recovered"]),
            ]
            for row in rows
        ],
    )


def run_table(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one line a stage, as ``spp status RUN`` shows them."""
    return table(*stage_cells(stages))


def stage_cells(
    stages: Mapping[str, Mapping[str, Any]],
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a run's stages.

    Each stage has ``state`` and, once it is done, ``finished`` (ISO time), ``seconds`` and
    ``peak_memory_bytes``.
    """
    rows = []
    for stage, row in stages.items():
        memory, seconds = row.get("peak_memory_bytes"), row.get("seconds")
        rows.append(
            [
                stage,
                _state(row),
                str(row.get("finished") or _NOTHING)[:16].replace("T", " "),
                _NOTHING if seconds is None else duration(seconds),
                _NOTHING if memory is None else f"{memory / 2**30:.2f} GiB",
            ]
        )
    return ["stage", "state", "finished", "took", "peak memory"], rows


def plan_table(document: Mapping[str, Any]) -> str:
    """Return what ``spp plan`` found: the model, the layers by kind, what pruning needs, stages."""
    model, prune, needs = document["model"], document["prune"], document["needs"]
    how = [prune["method"], prune["pattern"]]
    how += [prune[key] for key in ("refine", "recover") if prune[key] != "none"]
    if text := prune["calibration"]:
        how.append(prune["order"])
        how.append(f"{text['samples']} × {text['length']} tokens of calibration")
    lines = [
        f"model: {model['path']}, {model['kind']}, {model['blocks']} blocks, "
        f"{_count(model['parameters'])} parameters, {model['dtype']}, "
        f"{binary_size(model['bytes'])}",
        f"prune: {', '.join(how)}",
    ]
    memory = needs["memory"] + needs["libraries"]
    rows = [["memory", binary_size(memory)], ["disk", binary_size(needs["disk"])]]
    rows += [["read", binary_size(needs["read"])], ["written", binary_size(needs["written"])]]
    if needs["device"]:
        rows.insert(0, [f"on {prune['device']}", binary_size(needs["device"])])
    states = [[name, stage["state"], stage["action"]] for name, stage in document["stages"].items()]
    parts = [
        "\n".join(lines),
        _layers_by_kind(prune),
        table(["prune needs", "about"], rows),
        table([f"run {document['run']}", "state", "spp run would"], states),
    ]
    return "\n\n".join(parts)


def _layers_by_kind(prune: Mapping[str, Any]) -> str:
    """Return one line for the layers that differ only in the numbers of their block or expert."""
    kinds: dict[tuple[str, ...], int] = {}
    for layer in prune["layers"]:
        kind = re.sub(r"\.[0-9]+(?=\.)", ".*", layer["name"])
        shape = " × ".join(map(str, layer["shape"]))
        fate = prune["allocation"]
        if layer["problem"] or layer["sparsity"] is not None:
            fate = "does not fit" if layer["problem"] else f"{layer['sparsity']:.4f}"
        kinds[kind, shape, fate] = kinds.get((kind, shape, fate), 0) + 1
    rows = [[kind, shape, str(same), fate] for (kind, shape, fate), same in kinds.items()]
    rows += [
        [kind.removesuffix(".weight"), "", str(entry["matrices"]), f"dense: {entry['why']}"]
        for kind, entry in prune["dense"].items()
    ]
    number = str(len(prune["layers"]))
    rows.append(["all that are pruned", "", number, f"{prune['sparsity']:.4f}"])
    rows.append(["all weights of the blocks", "", "", f"{prune['block_sparsity']:.4f}"])
    return table(["layer", "shape", "layers", "sparsity"], rows)


def binary_size(size: float) -> str:
    """Return "1.25 GiB"."""
    unit, name = next(
        (item for item in ((2**30, "GiB"), (2**20, "MiB")) if size >= item[0]), (2**10, "KiB")
    )
    return f"{size / unit:.2f} {name}"


def _state(row: Mapping[str, Any]) -> str:
    progress = row.get("progress")
    state = _NOTHING if row["state"] == "missing" else str(row["state"])
    return f"{state} {progress['done']}/{progress['total']}" if progress else state


def _perplexity(measured: Mapping[str, Any] | None) -> str:
    """Return "19.93 → 60.24 → 24.40 (@256)": without its length a perplexity cannot be compared.

    Of finetuned and merged, which should not differ, the later one counts as now.
    """
    if not measured:
        return _NOTHING
    numbers = dict(measured["stages"])
    if "merge" in numbers:
        numbers.pop("finetune", None)
    arrows = " → ".join(f"{value:.2f}" for value in numbers.values())
    return f"{arrows} (@{measured['name'].rpartition('@')[2]})"


def _number(value: float | None, digits: int) -> str:
    return _NOTHING if value is None else f"{value:.{digits}f}"


def trials_table(document: Mapping[str, Any]) -> str:
    """Return the trials of a search, the best first, and the options that it speaks for."""
    rows = [
        [
            f"{trial['learning_rate']:g}",
            trial["schedule"],
            _NOTHING if trial["r"] is None else str(trial["r"]),
            _number(trial["loss"], 4),
        ]
        for trial in document["trials"]
    ]
    best = document["best"]
    options = f"--learning-rate {best['learning_rate']:g} --schedule {best['schedule']}"
    if best["r"] is not None:
        options += f" --r {best['r']}"
    trials = table(["learning rate", "schedule", "r", "validation loss"], rows)
    return f"{trials}\n\nBest after {document['steps']} steps: spp finetune {options}"


def calibration_table(kept: Mapping[str, Any]) -> str:
    """Return what ``spp calibrate`` keeps, one fact a line, and the preview below it.

    ``kept`` has ``path``, ``is_new``, ``source``, ``recipe``, ``samples``, ``length`` (tokens),
    ``seed``, ``digest`` and ``preview``, a list of texts.
    """
    facts = {
        "tokens": f"{kept['path']} ({'drawn now' if kept['is_new'] else 'drawn before'})",
        "source": kept["source"],
        "recipe": kept["recipe"],
        "samples": f"{kept['samples']} × {kept['length']}, seed {kept['seed']}",
        "digest": kept["digest"],
    }
    lines = [f"{name:<7}  {fact}" for name, fact in facts.items()]
    width = len(str(len(kept["preview"])))
    shown = [f"{number:>{width}}  {text}" for number, text in enumerate(kept["preview"], start=1)]
    return "\n".join([*lines, *([""] if shown else []), *shown])


def verify_table(report: Mapping[str, Any]) -> str:
    """Return one line a linear layer and one for all, from ``VerifyReport.as_dict()``."""
    rows = [
        [
            layer["name"],
            " × ".join(map(str, layer["shape"])),
            f"{layer['sparsity']:.4f}",
            str(layer["violations"]),
            str(layer["filled"]),
        ]
        for layer in report["layers"]
    ]
    sums = [str(sum(layer[key] for layer in report["layers"])) for key in ("violations", "filled")]
    overall = ["all", "", f"{report['sparsity']:.4f}", *sums]
    return table(["layer", "shape", "sparsity", "violations", "filled"], [*rows, overall])


def whereabouts_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return where each data set lies, one a line, and below what to do about those missing.

    Each has ``use``, ``data_set``, ``subsets``, ``state``, ``place``, ``problem`` and ``remedy``.
    """
    rows = []
    for each in found:
        subsets = each["subsets"]
        which = f" ({subsets[0] if len(subsets) == 1 else f'{len(subsets)} subsets'})"
        where = {"cache": "in the hub's cache", "copy": f"copy in {each['place']}"}
        state = where.get(each["state"], each["state"])
        rows.append([each["use"], each["data_set"] + which * bool(subsets), state])
    missing: dict[tuple[str, str], list[str]] = {}
    for each in found:
        if each["state"] == "missing":
            missing.setdefault((each["problem"], each["remedy"]), []).append(each["use"])
    lines = [
        f"{', '.join(uses)}: {problem}\n    {remedy}" for (problem, remedy), uses in missing.items()
    ]
    return "\n\n".join([table(["for", "data set", "at hand"], rows), *lines])
