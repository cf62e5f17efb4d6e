"""Two runs against each other: what differs, the likeliest cause of other numbers first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spp_cli.comparability import alike
from spp_cli.comparison import MADE_BY, evaluations
from spp_cli.errors import ModelError, WorkspaceError
from spp_cli.fingerprint import (
    NOT_SET,
    Fingerprint,
    Manifest,
    canonical_json,
    changed_inputs,
    differences,
)
from spp_cli.reporting.columns import cells, error_of, measured, measured_by
from spp_cli.workspace import STAGES, Run

__all__ = ["KINDS", "Side", "diff"]

# From what explains most to what explains least.
KINDS = (
    "model",
    "evaluation",
    "pruning",
    "calibration",
    "training",
    "seed",
    "versions",
    "other",
)
_OF_STAGE = {"prune": "pruning", "finetune": "training", "merge": "other", "eval": "other"}
_OF_INPUT = {
    "model": "model",
    "text": "evaluation",
    "tasks": "evaluation",
    "copies": "evaluation",
    "calibration": "calibration",
    "data": "training",
    "validation": "training",
}
_OF_FACT = {  # what finished stages tell of themselves that is no setting
    ("prune", "calibration"): "calibration",
    ("prune", "order"): "pruning",
    ("finetune", "train"): "training",
    ("finetune", "validation"): "training",
    ("finetune", "rows_per_step"): "training",
}
_OF_TASK = ("harness", "version", "num_fewshot", "samples", "chat_template", "data", "definition")
Found = tuple[str, str, Any, Any]  # kind, key, value of a, value of b


@dataclass(frozen=True)
class Side:
    """A run, or what it is up to one of its stages."""

    run: Run
    stage: str | None = None

    @property
    def name(self) -> str:
        """The side as the command line names it."""
        return f"{self.run.name}/{self.stage}" if self.stage else self.run.name

    def manifests(self) -> dict[str, Manifest]:
        """Return the records of the finished stages that count.

        Raises:
            WorkspaceError: a stage is damaged, or there is none.
        """
        wanted = [*MADE_BY[self.stage], "eval"] if self.stage else STAGES
        every = {stage: self.run.manifest(stage) for stage in wanted}
        found = {stage: manifest for stage, manifest in every.items() if manifest}
        if self.stage not in (None, *found) or not found:
            what = self.stage or "finished stage"
            raise WorkspaceError(
                f"run {self.run.name} has no {what} to compare. Run: spp {self.stage or 'prune'} "
                f"--run {self.run.name}"
            )
        return found


def diff(a: Side, b: Side) -> dict[str, Any]:
    """Return what differs between two sides, as a document of plain values.

    ``differences``: ``kind`` (one of ``KINDS``, in that order), ``stage``, ``key``, and the values
    ``a`` and ``b``; one that is missing is not set there. ``masks``: whether they are the ``same``;
    if not, the overlap of the linears that both have by ``layers`` and ``blocks`` and ``overall``,
    or why there is none, ``problem``; None if a side has no masks. ``results``: ``stage``,
    ``name``, ``a`` and ``b`` of each number that both have and that is not the same, with
    ``a_stderr`` and ``b_stderr`` if it has errors. Numbers that were not measured alike are not
    among them: ``not_compared`` names those measurements, and ``differences`` says what differs.

    Raises:
        WorkspaceError: a stage is damaged, or a side has nothing to compare.
    """
    manifests = a.manifests(), b.manifests()
    evaluated = [{row["stage"]: row for row in evaluations(side.run)} for side in (a, b)]
    stages = [(a.stage or stage, b.stage or stage) for stage in MADE_BY]
    pairs = [
        (evaluated[0][one], evaluated[1][other])
        for one, other in dict.fromkeys(stages)
        if one in evaluated[0] and other in evaluated[1]
    ]
    found: dict[str, dict[str, Any]] = {}
    for stage, (kind, key, old, new) in _all(*manifests, pairs):
        values = {"a": old, "b": new}
        entry = {k: v for k, v in values.items() if v is not NOT_SET}
        # What several stages have in common, such as a version, is told of the first.
        entry = {"kind": kind, "stage": stage, "key": key, **entry}
        found.setdefault(canonical_json([key, entry.get("a"), entry.get("b")]), entry)
    return {
        "a": a.name,
        "b": b.name,
        "differences": sorted(found.values(), key=lambda entry: KINDS.index(entry["kind"])),
        "masks": _masks(a, b, *manifests),
        "results": [result for pair in pairs for result in _results(*pair)],
        "not_compared": list(dict.fromkeys(name for pair in pairs for name in _unlike(*pair))),
    }


def _all(
    a: Mapping[str, Manifest], b: Mapping[str, Manifest], pairs: list[Any]
) -> Iterator[tuple[str, Found]]:
    for one, other in pairs:
        yield from ((one["stage"], entry) for entry in _ways_of_measuring(one, other))
    for stage in STAGES:
        if stage in a and stage in b:
            yield from ((stage, entry) for entry in _between(a[stage], b[stage]))
        elif stage in a or stage in b:
            old, new = ("done" if stage in side else NOT_SET for side in (a, b))
            yield stage, (_OF_STAGE[stage], stage, old, new)


def _ways_of_measuring(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Found]:
    if a["model_digest"] != b["model_digest"]:
        yield "model", "model.digest", a["model_digest"], b["model_digest"]
    if not a["perplexity"].keys() & b["perplexity"].keys():
        names = ([*row["perplexity"]] for row in (a, b))
        yield from _unequal("evaluation", "perplexity", *names)
    for kind, keys in (("perplexity", ("digest", "source")), ("tasks", _OF_TASK)):
        for name in (name for name in a[kind] if name in b[kind]):
            for key in keys:
                values = (row[kind][name].get(key, NOT_SET) for row in (a, b))
                yield from _unequal("evaluation", f"{name}.{key}", *values)


def _unequal(kind: str, key: str, a: Any, b: Any) -> Iterator[Found]:
    if a != b:
        yield kind, key, a, b


def _between(a: Manifest, b: Manifest) -> Iterator[Found]:
    """Yield what the records of one stage do not share."""
    stage, old, new = a.stage, a.made_from(), b.made_from()
    for setting in differences(old, new):
        yield _kind(stage, setting.key), setting.key, setting.old, setting.new
    for name in changed_inputs(old, new):
        is_told = name in STAGES and name not in (old.inputs.keys() & new.inputs.keys())
        if not is_told:  # that a side lacks this stage
            yield _input(name, old, new)
    for (where, fact), kind in _OF_FACT.items():
        if where == stage:
            yield from _facts(kind, fact, a.metrics.get(fact), b.metrics.get(fact))
    for package in dict.fromkeys([*a.versions, *b.versions]):
        values = (side.versions.get(package, NOT_SET) for side in (a, b))
        yield from _unequal("versions", package, *values)
    yield from _unequal("versions", "platform", a.platform, b.platform)
    if stage != "eval":
        yield from _unequal("other", f"digest of {stage}", a.output_digest, b.output_digest)


def _kind(stage: str, key: str) -> str:
    if key == "seed":
        return "seed"
    if key == "format of spp":
        return "versions"
    for start, kind in (("model.", "model"), ("prune.calibration.", "calibration")):
        if key.startswith(start):
            return kind
    return _OF_STAGE[stage]


def _input(name: str, a: Fingerprint, b: Fingerprint) -> Found:
    values = [side.inputs.get(name, NOT_SET) for side in (a, b)]
    if name == "model":  # as the settings of prune have it
        values = [value if value is NOT_SET else str(value)[:16] for value in values]
        return "model", "model.digest", values[0], values[1]
    return _OF_INPUT.get(name, "other"), f"digest of {name}", values[0], values[1]


def _facts(kind: str, name: str, a: Any, b: Any) -> Iterator[Found]:
    if not (isinstance(a, Mapping) or isinstance(b, Mapping)):
        yield from _unequal(kind, f"{name}, as done", a, b)
        return
    a, b = a or {}, b or {}  # a method that reads no text has none
    for key in dict.fromkeys([*a, *b]):
        values = (side.get(key, NOT_SET) for side in (a, b))
        yield from _unequal(kind, f"{name}, as done: {key}", *values)


def _results(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    stage = a["stage"] if a["stage"] == b["stage"] else f"{a['stage']} / {b['stage']}"
    one, other = cells(a), cells(b)
    unlike = _unlike(a, b)
    for name in ["sparsity", *measured([a]), "recovered", "bytes_packed"]:
        values = one.get(name), other.get(name)
        if measured_by(name, a) != measured_by(name, b) or _is_of(unlike, measured_by(name, a)):
            continue
        if None not in values and values[0] != values[1]:
            errors = {
                f"{side}_stderr": found[error_of(name)]
                for side, found in (("a", one), ("b", other))
                if error_of(name) in found
            }
            yield {"stage": stage, "name": name, "a": values[0], "b": values[1], **errors}


def _unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return the perplexities and tasks that both have, but measured in different ways."""
    found = [
        name
        for kind in ("perplexity", "tasks")
        for name in a[kind]
        if name in b[kind] and not alike(a[kind][name], b[kind][name])
    ]
    means = a["zeroshot_tasks"], b["zeroshot_tasks"]
    is_unlike = means[0] != means[1] or set(found).intersection(means[0])
    return [*found, "zeroshot"] if all(means) and is_unlike else found


def _is_of(names: list[str], column: str) -> bool:
    return any(column == name or column.startswith(f"{name}.") for name in names)


def _masks(
    a: Side, b: Side, of_a: Mapping[str, Manifest], of_b: Mapping[str, Manifest]
) -> dict[str, Any] | None:
    places = _masked(a, of_a), _masked(b, of_b)
    if None in places:
        return None
    one, other = (stage for stage in places if stage)
    if of_a[one].mask_digest == of_b[other].mask_digest:
        return {"same": True}
    try:
        return _overlap(a.run.folder / one, b.run.folder / other)
    except ModelError as error:  # all else can be told without them
        return {"same": False, "problem": str(error)}


def _overlap(a: Path, b: Path) -> dict[str, Any]:
    from spp_cli.sparsity.masks import KeepMasks  # not above: it imports torch
    from spp_cli.sparsity.overlap import block_of, overlap, overlaps

    masks = KeepMasks(a), KeepMasks(b)
    layers = overlaps(*masks)
    if not layers:
        return {"same": False, "problem": "no linear layer of the same name and shape is in both"}
    blocks: dict[str, list[Any]] = {}
    for layer in layers:
        blocks.setdefault(block_of(layer.name), []).append(layer)
    return {
        "same": False,
        "layers": [layer.as_dict() for layer in layers],
        "blocks": [overlap(name, block).as_dict() for name, block in blocks.items()],
        "overall": overlap("all", layers).as_dict(),
        "unmatched": [len(side) - len(layers) for side in masks],
    }


def _masked(side: Side, manifests: Mapping[str, Manifest]) -> str | None:
    """Return the stage whose folder has the masks; finetune's are those of its base."""
    stages = ("merge", "prune") if side.stage == "merge" else ("prune", "merge")
    return next((stage for stage in stages if stage in manifests), None)
