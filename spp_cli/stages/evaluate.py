"""spp eval: how good the model of each stage is, and how much of what pruning lost came back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spp_cli.comparability import recovered
from spp_cli.config import SppConfig
from spp_cli.errors import WorkspaceError
from spp_cli.evaluation.results import FIGURES, Measure, Subject
from spp_cli.fingerprint import write_json
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.progress import Reporter
from spp_cli.publishing import RESULTS
from spp_cli.reading import read_json
from spp_cli.stages.stage import Result, Sources
from spp_cli.stages.stage_model import folder_loader, loader, model_folder

__all__ = ["RESULTS", "evaluate_folder", "run"]


def run(config: SppConfig, sources: Sources, target: Path, reporter: Reporter) -> Result:
    """Evaluate the stages that are there and write results.json into ``target``.

    Results of an earlier evaluation that still hold, of other tasks for example, go on.
    """
    present = {"dense": sources.model, **sources.stages}
    wanted = [stage for stage in config.eval.stages if stage in present]
    if not wanted:
        raise WorkspaceError(
            f"eval: none of the stages {', '.join(config.eval.stages)} is there yet. "
            f"Run: spp {config.eval.stages[0]}"
        )
    earlier = _read(sources.stages.get("eval"))
    models = {}
    measure = Measure(config, sources.cache, reporter, again=sources.again)
    for stage in ("dense", "prune", "finetune", "merge"):
        digest = sources.digests.get(stage)
        before = earlier.get(stage, {})
        # Of a dense model that is not read only the beginning of its digest may be on record.
        holds = digest is not None and str(before.get("digest", "")).startswith(digest)
        results = before.get("results", {}) if holds else {}
        figures = {key: before[key] for key in FIGURES if results and key in before}
        if stage in wanted:
            assert digest is not None
            folder = model_folder(sources, stage)
            found, figures = measure(Subject(stage, digest, folder, loader(config, sources, stage)))
            results = {**results, **found}
        if results:
            known = digest if stage in wanted else before["digest"]
            models[stage] = {"digest": known, **figures, "results": results}
    shares = recovered(models)
    write_json(target / RESULTS, {"format": 1, "models": models, "recovered": shares})
    return Result({"recovered": shares, **_headline(models)}, [RESULTS])


def evaluate_folder(config: SppConfig, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """Return the results of any model folder, in the form of one model of results.json."""
    Checkpoint(folder)  # refuses what is none before anything is measured
    subject = Subject(folder.name, "", folder, folder_loader(config, folder))
    results, figures = Measure(config, None, reporter)(subject)
    return {"format": 1, "models": {str(folder): {**figures, "results": results}}, "recovered": {}}


def _headline(models: Mapping[str, Any]) -> dict[str, Any]:
    """Return stage → task → number, for ``spp status``."""
    return {
        stage: {
            task: result.get("perplexity", result.get("metrics", {}).get("acc"))
            for task, result in model["results"].items()
        }
        for stage, model in models.items()
    }


def _read(folder: Path | None) -> dict[str, Any]:
    try:
        models = read_json(folder / RESULTS)["models"] if folder else {}
        return models if isinstance(models, dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
