"""What a run has, and what came of it, from its records on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spp_cli.comparability import alike
from spp_cli.comparison import evaluation_of
from spp_cli.fingerprint import Manifest
from spp_cli.workspace import STAGES, Run

__all__ = ["run_status"]

MODELS = ("dense", "prune", "finetune", "merge")  # what an evaluation measures, in order


def run_status(run: Run) -> dict[str, Any]:
    """Return the states of a run's stages, its sparsity, and the perplexity of its last model.

    ``stages`` maps each stage to its ``state`` and, where it has them, ``progress`` (done, total,
    unit), ``finished``, ``seconds`` and ``peak_memory_bytes``. ``sparsity`` is a share, 0 to 1, of
    the pruned linears; ``block_sparsity`` that of all weights in the decoder blocks.
    ``perplexity`` has its ``name``, such as "perplexity@2048", and the numbers of those ``stages``
    that were evaluated on the same text as the latest, in order. ``recovered`` is the share of the
    loss, in nats, that came back with the latest. ``rounding`` is what a merge has on
    record of it. All of these may be None.
    """
    manifests = {stage: run.intact_manifest(stage) for stage in STAGES}
    evaluation = (evaluation_of(run) if manifests["eval"] else None) or {}
    latest, perplexity = _perplexity(evaluation.get("models", {}))
    shares = evaluation.get("recovered", {}).get(latest, {})
    return {
        "run": run.name,
        "folder": str(run.folder),
        "stages": {stage: _stage(run, stage, manifests[stage]) for stage in STAGES},
        "sparsity": _latest("sparsity", manifests),
        "block_sparsity": _latest("block_sparsity", manifests),
        "rounding": (merge := manifests["merge"]) and merge.metrics.get("rounding"),
        "perplexity": perplexity,
        "recovered": perplexity and shares.get(perplexity["name"]),
    }


def _stage(run: Run, stage: str, manifest: Manifest | None) -> dict[str, Any]:
    status: dict[str, Any] = {"state": run.state(stage)}
    if status["state"] in ("partial", "running") and (progress := run.progress(stage)):
        status["progress"] = progress
    if manifest:
        status["finished"] = manifest.finished
        status["seconds"] = manifest.seconds
        status["peak_memory_bytes"] = manifest.peak_memory_bytes
    return status


def _latest(metric: str, manifests: dict[str, Manifest | None]) -> float | None:
    for stage in ("merge", "prune"):
        manifest = manifests[stage]
        if manifest and metric in manifest.metrics:
            return float(manifest.metrics[metric])
    return None


def _perplexity(models: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Return the latest stage that has a perplexity, and with it all that compare with its last."""
    found = {
        stage: [name for name, result in model["results"].items() if "nats" in result]
        for stage, model in models.items()
    }
    latest = next((stage for stage in reversed(MODELS) if found.get(stage)), "")
    if not latest:
        return "", None
    name = found[latest][-1]
    judged = models[latest]["results"][name]
    stages = {
        stage: models[stage]["results"][name]["perplexity"]
        for stage in MODELS
        if name in found.get(stage, ()) and alike(models[stage]["results"][name], judged)
    }
    return latest, {"name": name, "stages": stages}
