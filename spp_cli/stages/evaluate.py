"""spp eval: how good the model of each stage is, and how much of what pruning lost came back."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from spp_cli.adapters.adapter import AdaptedLinear
from spp_cli.config import EvalConfig, SppConfig
from spp_cli.data.stdlib import missing_modules
from spp_cli.data.tokens import TokenSet, evaluation_tokens, resolve_length
from spp_cli.errors import WorkspaceError
from spp_cli.evaluation.harness import (
    ZEROSHOT,
    TaskResult,
    check_tasks,
    evaluate_tasks,
    expand_tasks,
    harness_version,
    zeroshot_mean,
)
from spp_cli.evaluation.perplexity import perplexity
from spp_cli.fingerprint import canonical_json, sha256, write_json
from spp_cli.models.checkpoint import Checkpoint, is_demo_family
from spp_cli.models.decoder import Decoder
from spp_cli.models.loading import load_config, load_tokenizer
from spp_cli.progress import Reporter
from spp_cli.publishing import RESULTS
from spp_cli.stages.stage import Result, Sources
from spp_cli.stages.stage_model import LoadModel, folder_loader, loader, model_folder

__all__ = ["RESULTS", "evaluate_folder", "evaluation_text", "run"]


def run(config: SppConfig, sources: Sources, target: Path, reporter: Reporter) -> Result:
    """Evaluate the stages that are there and write results.json into ``target``.

    Results of an earlier evaluation that still hold, of other tasks for example, go on.
    """
    wanted = [stage for stage in config.eval.stages if stage in {"dense", *sources.stages}]
    if not wanted:
        raise WorkspaceError(
            f"eval: none of the stages {', '.join(config.eval.stages)} is there yet. "
            f"Run: spp {config.eval.stages[0]}"
        )
    earlier = _read(sources.stages.get("eval"))
    models = {}
    for stage in ("dense", "prune", "finetune", "merge"):
        digest = sources.digests.get(stage)
        before = earlier.get(stage, {})
        results = before.get("results", {}) if before.get("digest") == digest else {}
        figures = {key: before[key] for key in _FIGURES if results and key in before}
        if stage in wanted:
            assert digest is not None
            measure = _Measure(config, stage, digest, sources.cache, reporter)
            folder = model_folder(sources, stage)
            found, figures = measure(folder, loader(config, sources, stage))
            results = {**results, **found}
        if results:
            models[stage] = {"digest": digest, **figures, "results": results}
    document = {"format": 1, "models": models, "recovered": _recovered(models)}
    write_json(target / RESULTS, document)
    return Result({"recovered": document["recovered"], **_headline(models)})


def evaluate_folder(config: SppConfig, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """Return the results of any model folder, in the form of one model of results.json."""
    Checkpoint(folder)  # refuses what is none before anything is measured
    measure = _Measure(config, folder.name, "", None, reporter)
    results, figures = measure(folder, folder_loader(config, folder))
    return {"format": 1, "models": {str(folder): {**figures, "results": results}}, "recovered": {}}


_FIGURES = ("sparsity", "parameters", "nonzero_parameters")


class _Measure:
    """Measures one model in all tasks, loading it only if the cache lacks a result."""

    def __init__(
        self, config: SppConfig, name: str, digest: str, cache: Path | None, reporter: Reporter
    ) -> None:
        self._config = config
        self._name = name
        self._digest = digest
        self._cache = cache
        self._reporter = reporter
        self._model: PreTrainedModel | None = None

    def __call__(self, folder: Path, load: LoadModel) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return results by task, and figures of the model itself.

        ``folder`` holds config and tokenizer of the model that ``load`` returns.
        """
        settings = self._config.eval
        trusted = self._config.model.trust_remote_code
        tokenizer = load_tokenizer(folder, trust_remote_code=trusted)
        demo = is_demo_family(folder)
        if demo and (missing := missing_modules("test")):
            self._reporter.warn(
                f"this Python lacks {', '.join(missing)} of the embedded model's test text; "
                "its numbers do not compare with those of other machines"
            )
        tasks = [task for task in settings.tasks if task != "perplexity"]
        names = expand_tasks(tasks)
        if names:
            check_tasks(names, settings)

        def model() -> PreTrainedModel:
            if self._model is None:
                self._reporter.say(f"eval: {self._name}")
                self._model = load()
            return self._model

        results: dict[str, Any] = {}
        if "perplexity" in settings.tasks:
            tokens = evaluation_text(settings, tokenizer, folder, demo)
            length = tokens.tokens.shape[1]
            results[f"perplexity@{length}"] = self._remembered(
                {"task": "perplexity", "tokens": tokens.digest},
                lambda: _perplexity(model(), tokens, settings, self._reporter),
            )
        for name in names:
            key = {
                "task": name,
                "harness": harness_version(),
                "shots": settings.num_fewshot,
                "limit": settings.limit,
                "folders": [settings.task_folder, settings.data_folder],
            }

            def score(name: str = name) -> dict[str, Any]:
                found = evaluate_tasks(model(), tokenizer, [name], settings, self._reporter)
                return {task: asdict(result) for task, result in found.items()}

            # Whoever compares results must know by which harness they were counted.
            results |= {
                task: {**result, "harness": key["harness"]}
                for task, result in self._remembered(key, score).items()
            }
        if "zeroshot" in settings.tasks:
            mean = zeroshot_mean({name: _as_result(results[name]) for name in ZEROSHOT})
            results["zeroshot"] = {"metrics": {"acc": mean}, "tasks": list(ZEROSHOT)}
        figures = self._remembered({"figures": _FIGURES}, lambda: _figures(model()))
        self._model = None
        gc.collect()
        return results, figures

    def _remembered(self, key: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> Any:
        """Return what was measured before on the same model under the same key, or measure it."""
        if self._cache is None:
            return measure()
        whole = {**key, "model": self._digest, "device": self._config.model.device}
        digest = sha256(canonical_json(whole))
        path = self._cache / f"{digest[:32]}.json"
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError):
            pass
        value = measure()
        self._cache.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
        return value


def evaluation_text(settings: EvalConfig, tokenizer: Any, folder: Path, demo: bool) -> TokenSet:
    """Return the text that perplexity is measured on, for the model in ``folder``."""
    length = resolve_length(
        settings.perplexity.sequence_length,
        load_config(folder),
        setting="eval.perplexity.sequence_length",
    )
    return evaluation_tokens(
        settings.perplexity, tokenizer, length, demo=demo, data_folder=settings.data_folder
    )


def _perplexity(
    model: PreTrainedModel, tokens: TokenSet, settings: EvalConfig, reporter: Reporter
) -> dict[str, Any]:
    found = perplexity(model, tokens.tokens, batch_size=settings.batch_size, reporter=reporter)
    return {**asdict(found), "source": tokens.source, "digest": tokens.digest}


def _figures(model: PreTrainedModel) -> dict[str, Any]:
    """Return the sparsity of the linears in the decoder blocks, and the parameters of the whole.

    An adapter's own parameters are not counted: merged, they are gone.
    """
    linears = Decoder(model).all_linears()
    adapted = [item.module for item in linears if isinstance(item.module, AdaptedLinear)]
    weights = [
        item.module.effective_weight() if isinstance(item.module, AdaptedLinear) else item.weight
        for item in linears
    ]
    zeros = sum(int(weight.eq(0).sum()) for weight in weights)
    size = sum(weight.numel() for weight in weights)
    extra = sum(p.numel() for layer in adapted for p in layer.adapter_parameters().values())
    total = sum(parameter.numel() for parameter in model.parameters()) - extra
    return {"sparsity": zeros / size, "parameters": total, "nonzero_parameters": total - zeros}


def _as_result(found: Mapping[str, Any]) -> TaskResult:
    return TaskResult(found["metrics"], found["samples"], found["version"], found["num_fewshot"])


def _recovered(models: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return, for finetune and merge, the share of what pruning lost that came back, by task.

    Perplexity counts in nats: (pruned − now) / (pruned − dense). 1 is all of it.
    """
    shares: dict[str, dict[str, float]] = {}
    for stage in ("finetune", "merge"):
        if not {"dense", "prune", stage} <= set(models):
            continue
        results = [models[name]["results"] for name in ("dense", "prune", stage)]
        for task in results[2]:
            if all(task in found for found in results):
                dense, pruned, now = (_number(found[task]) for found in results)
                if pruned != dense:
                    shares.setdefault(stage, {})[task] = (pruned - now) / (pruned - dense)
    return shares


def _number(result: Mapping[str, Any]) -> float:
    """Return the one number by which a loss is judged: nats for perplexity, else accuracy."""
    if "nats" in result:
        return float(result["nats"])
    metrics = result["metrics"]
    return float(metrics["acc"] if "acc" in metrics else next(iter(metrics.values())))


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
        models = json.loads((folder / RESULTS).read_bytes())["models"] if folder else {}
        return models if isinstance(models, dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
