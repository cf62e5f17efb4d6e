"""What a run has, and what came of it, from its records on disk."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from spp_cli.errors import WorkspaceError
from spp_cli.fingerprint import Manifest
from spp_cli.workspace import STAGES, Run

__all__ = ["run_status"]


def run_status(run: Run) -> dict[str, Any]:
    """Return the states of a run's stages, its sparsity, and the perplexity of its last model.

    ``stages`` maps each stage to its ``state`` and, where it has them, ``progress`` (done, total,
    unit), ``finished``, ``seconds`` and ``peak_memory_bytes``. ``sparsity`` is a share, 0 to 1.
    ``perplexity`` maps a name such as "perplexity@2048" to a number. Both may be None.
    """
    manifests = {stage: _manifest(run, stage) for stage in STAGES}
    return {
        "run": run.name,
        "folder": str(run.folder),
        "stages": {stage: _stage(run, stage, manifests[stage]) for stage in STAGES},
        "sparsity": _sparsity(manifests),
        "perplexity": _perplexity(manifests["eval"]),
    }


def _manifest(run: Run, stage: str) -> Manifest | None:
    with suppress(WorkspaceError):
        return run.manifest(stage)
    return None


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


def _perplexity(evaluation: Manifest | None) -> dict[str, float] | None:
    """Return the perplexity of the latest stage that was evaluated, under its full name."""
    measured = evaluation.metrics if evaluation else {}
    for stage in ("merge", "finetune", "prune", "dense"):
        for name, value in measured.get(stage, {}).items():
            if name.startswith("perplexity"):
                return {name: float(value)}
    return None
