"""Many runs side by side: one row for each model that was evaluated, from the records on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from spp_cli.comparability import reasons, recovered
from spp_cli.errors import ConfigError, WorkspaceError
from spp_cli.fingerprint import Manifest
from spp_cli.publishing import CONFIG, RESULTS
from spp_cli.reading import read_json
from spp_cli.settings import read_yaml
from spp_cli.workspace import Run

__all__ = ["MADE_BY", "evaluation_of", "evaluations", "mark", "rows"]

Row = dict[str, Any]
MADE_BY = {  # the stages that each model comes from
    "dense": (),
    "prune": ("prune",),
    "finetune": ("prune", "finetune"),
    "merge": ("prune", "finetune", "merge"),
}
_UNREADABLE = (WorkspaceError, OSError, ValueError, KeyError, TypeError, AttributeError)
# As those who write them call them; to import them takes seconds.
_MASKS, _ADAPTER = "keep_masks.safetensors", "adapter.safetensors"


def rows(runs: Sequence[Run]) -> list[Row]:
    """Return one row for each run and evaluated stage, in the order of ``runs``.

    A dense model has one row for all runs in which it has the same digest and results; it comes
    before the first of them, and its ``run`` is None. A row has:

    - ``run``; ``runs``, all in which it was measured; ``stage``: dense, prune, finetune or merge;
    - ``model``, the path of the dense model, and the first 16 digits of its ``model_digest``;
    - ``method``, ``pattern`` ("unstructured", "2:4"), ``target_sparsity``, ``allocation``,
      ``refine``, ``recover``, ``order``, ``adapter``: None where they do not apply;
    - ``settings``: by key ("finetune.learning_rate") all that decided the model;
    - ``perplexity``: by name ("perplexity@256") ``perplexity``, ``nats``, ``tokens``, ``length``,
      ``source`` and the tokens' ``digest``;
    - ``tasks``: by name ``metrics`` (acc, acc_stderr, acc_norm, ...), ``samples`` (questions),
      ``version``, ``num_fewshot``, ``chat_template``, the digest of its ``data``, the ``harness``'s
      version, and the ``group`` of which it is a member, if any; ``zeroshot``: mean of acc over
      the ``zeroshot_tasks``, or None, and ``zeroshot_stderr``;
    - ``recovered``: by name of the measurement the share that came back, None where that is not
      known: see ``comparability``;
    - ``sparsity``, 0 to 1, of the linears in decoder blocks, and ``bytes_packed``;
    - ``minutes`` of all stages up to this one, ``stage_minutes`` of this one alone,
      ``peak_memory_bytes``, the most of those stages: of several that ran in one process each
      counts the ones before it;
    - ``outdated``: whether what was measured was made anew since;
    - ``incomparable``: in words why not to compare it with the others, see ``comparability``.
    """
    found: list[Row] = []
    for row in (row for run in runs for row in evaluations(run)):
        same = next((other for other in found if _is_same_dense(row, other)), None)
        if same:
            same["runs"] += row["runs"]
        else:
            found.append(row)
    mark(found)
    return found


def mark(rows: Sequence[Row]) -> None:
    """Set ``incomparable`` of each row anew, for these rows alone."""
    for row, why in zip(rows, reasons(rows), strict=True):
        row["incomparable"] = why


def evaluations(run: Run) -> list[Row]:
    """Return the rows of one run; none if it has no evaluation that can be read."""
    try:
        manifest, document = run.manifest("eval"), evaluation_of(run)
        if manifest is None or document is None:
            return []
        models, shares = document["models"], document["recovered"]
        records = _Records(run)
        return [
            _row(_Evaluated(records, manifest, stage, models[stage]), shares.get(stage, {}))
            for stage in MADE_BY
            if stage in models
        ]
    except _UNREADABLE:
        return []


def evaluation_of(run: Run) -> dict[str, Any] | None:
    """Return the results.json of a run, its models in order; None if there is none to be read.

    The shares recovered are judged here: those of earlier versions mixed texts and limits.
    """
    try:
        document = read_json(run.folder / "eval" / RESULTS)
        models = document["models"]
        models = {stage: models[stage] for stage in MADE_BY if stage in models}
        return {**document, "models": models, "recovered": recovered(models)}
    except _UNREADABLE:
        return None


def _is_same_dense(row: Row, other: Row) -> bool:
    keys = ("stage", "model_digest", "perplexity", "tasks", "zeroshot")
    return row["stage"] == "dense" and all(row[key] == other[key] for key in keys)


class _Records:
    """The records of one run, each read once for all of its models."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def manifests(self) -> dict[str, Manifest | None]:
        """Those of the stages before the evaluation; None of one that is not there, or damaged."""
        return {name: self.run.intact_manifest(name) for name in MADE_BY["merge"]}

    @cached_property
    def config(self) -> dict[str, Any]:
        """What the evaluation was configured with; empty if that cannot be read."""
        with suppress(ConfigError):
            return read_yaml(self.run.folder / "eval" / CONFIG).values
        return {}


class _Evaluated:
    """One model of a results.json, and the records of the stages that it was made by."""

    def __init__(
        self, records: _Records, evaluation: Manifest, stage: str, model: dict[str, Any]
    ) -> None:
        self.records, self.run = records, records.run
        self.evaluation, self.stage, self.model = evaluation, stage, model
        manifests = {name: records.manifests[name] for name in MADE_BY[stage]}
        there = {name: manifest for name, manifest in manifests.items() if manifest}
        measured = _digests(stage, model["digest"])
        self.is_outdated = any(
            name in there and there[name].output_digest != digest
            for name, digest in measured.items()
        )
        # Records of what was made anew since, or of what this model was not made from, say nothing.
        read = {**measured, **(there[stage].inputs if stage in there else {})}
        self.made_by = {
            name: manifest
            for name, manifest in there.items()
            if not self.is_outdated and manifest.output_digest == read.get(name)
        }

    def settings(self) -> dict[str, Any]:
        """Return all that decided the model, by key.

        Of a stage whose folder is gone the evaluation's config.yaml still tells.
        """
        sections: dict[str, Any] = {}
        for name in MADE_BY[self.stage]:
            if name in self.made_by:
                sections |= self.made_by[name].settings
                sections["seed"] = self.made_by[name].seed
            else:
                sections[name] = self.records.config.get(name, {})
        sections.pop("model", None)  # its digest is a row's own
        return dict(_leaves(sections)) if sections else {}

    def path(self) -> str | None:
        """Return the dense model's path as it was configured."""
        model = self.records.config.get("model")
        return model.get("path") if isinstance(model, Mapping) else model

    def dense_digest(self) -> str:
        if self.stage == "dense":
            return str(self.model["digest"])[:16]
        pruned = self.made_by.get("prune")
        recorded = pruned.settings.get("model", {}).get("digest") if pruned else None
        return str(recorded or self.evaluation.inputs.get("model", ""))[:16]


def _digests(stage: str, digest: str) -> dict[str, str]:
    """Return the digests of the stages' outputs that were measured: an adapter is with its base."""
    if stage == "finetune":
        prune, _, finetune = digest.partition("+")
        return {"prune": prune, "finetune": finetune}
    return {} if stage == "dense" else {stage: digest}


def _leaves(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for name, value in values.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, values


def _row(evaluated: _Evaluated, shares: dict[str, float | None]) -> Row:
    run, stage, model = evaluated.run, evaluated.stage, evaluated.model
    results = dict(model["results"])
    zeroshot = results.pop("zeroshot", None)
    settings = evaluated.settings()
    return {
        "run": None if stage == "dense" else run.name,
        "runs": [run.name],
        "stage": stage,
        "model": evaluated.path(),
        "model_digest": evaluated.dense_digest(),
        **_recipe(evaluated, settings),
        "settings": settings,
        "perplexity": {name: found for name, found in results.items() if "nats" in found},
        "tasks": {name: found for name, found in results.items() if "nats" not in found},
        "zeroshot": zeroshot and zeroshot["metrics"]["acc"],
        "zeroshot_stderr": zeroshot and zeroshot["metrics"].get("acc_stderr"),
        "zeroshot_tasks": zeroshot["tasks"] if zeroshot else [],
        "recovered": shares,
        "sparsity": model.get("sparsity"),
        "bytes_packed": _bytes_packed(evaluated),
        **_costs(evaluated),
        "outdated": evaluated.is_outdated,
        "incomparable": [],
    }


def _recipe(evaluated: _Evaluated, settings: Mapping[str, Any]) -> dict[str, Any]:
    pruned = evaluated.made_by.get("prune")
    order = settings.get("prune.order")
    if pruned and "order" in pruned.metrics:  # what auto has chosen; None if no text was read
        order = pruned.metrics["order"]
    allocation = settings.get("prune.allocation.name", settings.get("prune.allocation"))
    if isinstance(allocation, list):  # globs go on record as a list, for their order
        allocation = dict(allocation).get("name")
    return {
        "method": settings.get("prune.method.name"),
        "pattern": settings.get("prune.pattern"),
        "target_sparsity": settings.get("prune.sparsity"),
        "allocation": allocation,
        "refine": settings.get("prune.refine.name"),
        "recover": settings.get("prune.recover.name"),
        "order": order,
        "adapter": settings.get("finetune.adapter.name"),
    }


def _costs(evaluated: _Evaluated) -> dict[str, Any]:
    """Return times and memory; None where a stage's record is gone."""
    made_by = [evaluated.made_by.get(name) for name in MADE_BY[evaluated.stage]]
    manifests = [manifest for manifest in made_by if manifest]
    peaks = [manifest.peak_memory_bytes or 0 for manifest in manifests]
    complete = bool(made_by) and len(manifests) == len(made_by)
    seconds = [manifest.seconds for manifest in manifests]
    return {
        "minutes": sum(seconds) / 60 if complete else None,
        "stage_minutes": made_by[-1].seconds / 60 if made_by and made_by[-1] else None,
        "peak_memory_bytes": max(peaks) or None if complete else None,
    }


def _bytes_packed(evaluated: _Evaluated) -> int | None:
    """Return the bytes of the model without its zeros, as ``spp merge --packed`` would leave it.

    Its record says so exactly. Without one they are counted: each weight that is not zero, and the
    file of keep masks, one bit for each weight of the pruned linears (see ``sparsity.packing`` and
    ``sparsity.archive``). Left out are the headers of the weights' files, some kilobytes, and kept
    weights that happen to be zero. An adapter that is not merged comes on top of its base. The
    dense model has its weights as they are, of the type in which its run has pruned them.
    """
    model, made_by = evaluated.model, evaluated.made_by
    if packed := made_by.get("merge") and made_by["merge"].metrics.get("packed_bytes"):
        return int(packed)
    is_dense = evaluated.stage == "dense"
    manifest = made_by.get("merge", made_by.get("prune"))
    if is_dense:
        manifest = evaluated.records.manifests["prune"]
    if not (manifest and model.get("parameters")):
        return None
    width = round(_bytes_of_weights(manifest) / model["parameters"])
    masks = 0 if is_dense else manifest.files.get(_MASKS, 0)
    adapter = made_by["finetune"].files if evaluated.stage == "finetune" else {}
    return int(model["nonzero_parameters"] * width + masks + adapter.get(_ADAPTER, 0))


def _bytes_of_weights(manifest: Manifest) -> int:
    return sum(
        size
        for name, size in manifest.files.items()
        if name.endswith(".safetensors") and "/" not in name and name != _MASKS
    )
