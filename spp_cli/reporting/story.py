"""What was done in a run, in plain words, from its records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spp_cli.config import hub_origin
from spp_cli.reporting.tables import TITLES

__all__ = ["METHODS", "made", "model_name", "rounding", "source_name", "story"]

METHODS = {
    "magnitude": "magnitude pruning",
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "fista": "FISTAPruner",
    "mrp": "MRP",
    "alps": "ALPS",
    "isc": "ISC",
    "ria": "RIA",
}
_ADAPTERS = {"spp": "SPP", "lora": "LoRA"}
_REFINEMENTS = {"dsnot": "DSnoT"}
_RECOVERIES = {"least-squares": "a least-squares fit of what stayed"}
_ALLOCATIONS = {
    "owl": "OWL shared the zeros out among the blocks.",
    "sensitivity": "The more sensitive layers kept more.",
    "globs": "Layers lost unlike.",
}


def model_name(path: str) -> str:
    """Return what a model is called where people read it."""
    in_cache = hub_origin(path)
    return "the embedded model" if path == "demo" else in_cache[0] if in_cache else path


def story(run: Mapping[str, Any]) -> str:
    """Return one paragraph: model, method, pattern, calibration, adapter, steps, and the result.

    ``run`` has ``model`` (its path), ``manifests`` by finished stage, and ``status``, as
    ``run_status`` gives it. What is not on record is not told.
    """
    return " ".join([*made(run["manifests"], run["model"]), _evaluated(run["status"])])


def made(manifests: Mapping[str, Any], model: str) -> list[str]:
    """Return what was done to ``model``, the path of a dense one, some sentences for each stage."""
    tell = {"prune": lambda each: _pruned(each, model), "finetune": _finetuned, "merge": _merged}
    return [sentences(manifests[stage]) for stage, sentences in tell.items() if stage in manifests]


def _pruned(manifest: Mapping[str, Any], model: str) -> str:
    settings, metrics = manifest["settings"]["prune"], manifest["metrics"]
    name = model_name(model)
    method = METHODS.get(settings["method"]["name"], settings["method"]["name"])
    if refined := _REFINEMENTS.get(settings.get("refine", {}).get("name", "")):
        method = f"{method} and {refined}"
    if recovered := _RECOVERIES.get(settings.get("recover", {}).get("name", "")):
        method = f"{method}, then {recovered}"
    pattern = settings["pattern"]
    where = "wherever they fall" if pattern == "unstructured" else f"{pattern} kept"
    text = (
        f"{name[0].upper()}{name[1:]} was pruned with {method}: {metrics['sparsity']:.1%} of the "
        f"weights of {metrics['linears']} linear layers became zeros, {where}."
    )
    text += _blocks(metrics)
    if calibration := metrics.get("calibration"):
        text += (
            f" The method looked at {calibration['samples']:,} sequences of "
            f"{calibration['length']:,} tokens from {source_name(calibration['source'])}."
        )
    allocation = (metrics.get("allocation") or {}).get("name", "")
    return f"{text} {_ALLOCATIONS.get(allocation, '')}".rstrip()


def _blocks(metrics: Mapping[str, Any]) -> str:
    """Return what stays dense, if that makes a difference; older records do not say it."""
    overall = metrics.get("block_sparsity", metrics["sparsity"])
    if not metrics.get("dense") or f"{overall:.1%}" == f"{metrics['sparsity']:.1%}":
        return ""
    (name, entry), *others = metrics["dense"].items()
    more = f" and {len(others)} more kinds of matrices" if others else ""
    return (
        f" Of all weights in the decoder blocks {overall:.1%} are zeros: {name} "
        f"({entry['why']}){more} stayed dense."
    )


def _finetuned(manifest: Mapping[str, Any]) -> str:
    settings, metrics = manifest["settings"]["finetune"], manifest["metrics"]
    adapter = settings["adapter"]["name"]
    rows = metrics.get("rows_per_step")
    trained = metrics["trainable_parameters"]
    text = (
        f"An adapter ({_ADAPTERS.get(adapter, adapter)}) of {trained:,} parameters, "
        f"{trained / metrics['total_parameters']:.1%} of the model's, was then trained for "
        f"{metrics['steps']:,} steps{f' of {rows:,} rows' if rows else ''} of "
        f"{source_name(metrics['train']['source'])}"
    )
    if settings.get("distill"):
        text += ", and on the predictions of the dense model"
    before, after = (metrics[f"validation_loss_{when}"] for when in ("before", "after"))
    text += f"; the loss of rows held out went from {before:.2f} to {after:.2f} nats a token"
    if metrics["best_step"] != metrics["steps"]:
        text += f" at step {metrics['best_step']:,}, whose adapter was kept"
    return f"{text}."


def _merged(manifest: Mapping[str, Any]) -> str:
    metrics = manifest["metrics"]
    text = f"Merged, it is a plain model again, {metrics['sparsity']:.1%} of those weights zero."
    if cost := rounding(metrics):
        text += f" {cost[0].upper()}{cost[1:]}."
    return text


def rounding(metrics: Mapping[str, Any]) -> str:
    """Return how the weights of a merge were rounded and what it cost; empty if not on record."""
    cost = metrics.get("rounding")
    if not cost:
        return ""
    every, random = sum(cost["layers"].values()), cost["layers"].get("stochastic", 0)
    how = f"at random in {random} of {every} layers" if random else "to the nearest"
    text = (
        f"its weights were rounded to {cost['dtype']}, {how}: {cost['kept_weights_unchanged']:.1%} "
        f"of those kept are as they were pruned, {cost['update_kept']:.0%} of the update is left, "
        f"and the error is {cost['error_of_update']:.1%} of it by norm"
    )
    if loss := cost["loss"]:
        text += (
            f"; loss on {loss['tokens']:,} tokens of {source_name(loss['source'])}: "
            f"{loss['pruned']:.4f} pruned, {loss['adapter']:.4f} with the adapter, "
            f"{loss['merged']:.4f} merged"
        )
    return text


def _evaluated(status: Mapping[str, Any]) -> str:
    measured, recovered = status["perplexity"], status["recovered"]
    if not measured:
        return "Its perplexity has not been measured yet."
    numbers = dict(measured["stages"])
    if "merge" in numbers:
        numbers.pop("finetune", None)
    told = [f"{number:.2f} {TITLES[stage]}" for stage, number in numbers.items()]
    length = measured["name"].rpartition("@")[2]
    text = f"Perplexity over {length} tokens is {_listed(told)}"
    if recovered is not None:
        text += f": {recovered:.0%} of what pruning lost, in nats, came back"
    return f"{text}."


def source_name(source: str) -> str:
    """Return what a source of texts is called where people read it."""
    return "the embedded model's own text" if source == "demo" else source


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
