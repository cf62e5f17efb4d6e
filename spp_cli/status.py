"""What a run has, and what came of it, from its records on disk."""

from __future__ import annotations

from typing import Any

from spp_cli.fingerprint import Manifest
from spp_cli.workspace import STAGES, Run

__all__ = ["run_status"]

MODELS = ("dense", "prune", "finetune", "merge")  # what an evaluation measures, in order


def run_status(run: Run) -> dict[str, Any]:
    """Return the states of a run's stages, its sparsity, and the perplexity of its last model.

    ``stages`` maps each stage to its ``state`` and, where it has them, ``progress`` (done, total,
    unit), ``finished``, ``seconds`` and ``peak_memory_bytes``. ``sparsity`` is a share, 0 to 1.
    ``perplexity`` has its ``name``, such as "perplexity@2048", and the numbers of those ``stages``
    that were evaluated, in order. ``recovered`` is the share of its loss, in nats, that came back.
    All three may be None.
    """
    manifests = {stage: run.intact_manifest(stage) for stage in STAGES}
    measured = manifests["eval"].metrics if manifests["eval"] else {}
    return {
        "run": run.name,
        "folder": str(run.folder),
        "stages": {stage: _stage(run, stage, manifests[stage]) for stage in STAGES},
        "sparsity": _sparsity(manifests),
        "perplexity": (perplexity := _perplexity(measured)),
        "recovered": perplexity and _recovered(measured, perplexity["name"]),
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


def _sparsity(manifests: dict[str, Manifest | None]) -> float | None:
    for stage in ("merge", "prune"):
        manifest = manifests[stage]
        if manifest and "sparsity" in manifest.metrics:
            return float(manifest.metrics["sparsity"])
    return None


def _perplexity(measured: dict[str, Any]) -> dict[str, Any] | None:
    """Return the perplexities at the length of the latest stage that was evaluated."""
    names = [
        name
        for stage in MODELS
        for name in measured.get(stage, {})
        if name.startswith("perplexity@")
    ]
    if not names:
        return None
    name = names[-1]
    found = {stage: measured[stage][name] for stage in MODELS if name in measured.get(stage, {})}
    return {"name": name, "stages": found}


def _recovered(measured: dict[str, Any], name: str) -> float | None:
    shares = measured.get("recovered", {})
    for stage in ("merge", "finetune"):
        if name in shares.get(stage, {}):
            return float(shares[stage][name])
    return None
