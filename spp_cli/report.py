"""What a report tells of runs: gathered from their records, and from the models where asked."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from spp_cli import __version__, yaml12
from spp_cli.comparison import evaluation_of
from spp_cli.config import SppConfig
from spp_cli.errors import SppError, WorkspaceError
from spp_cli.invocation import recorded_settings
from spp_cli.progress import Reporter
from spp_cli.publishing import LOG
from spp_cli.reporting.loss_plot import read_log
from spp_cli.settings import validate
from spp_cli.status import run_status
from spp_cli.workspace import STAGES, Run

__all__ = ["facts", "gather", "look_inside"]


def gather(runs: Sequence[Run]) -> dict[str, Any]:
    """Return ``runs``, one document each from the records, and ``made``: when, where, by which spp.

    A run has:

    - ``run``, its name; ``model``, the path of the dense one; ``manifests`` by finished stage;
      ``status``, as ``run_status`` gives it;
    - ``evaluation``, its results.json or None; ``log``, the lines of its finetune; ``layers``, what
      pruning recorded of each, and ``output_error_from``, where their errors come from;
    - ``config``, YAML that runs again; ``commands`` for it; ``facts``, versions, machine and
      digests by name; ``warnings``, what is wrong with it;
    - ``samples`` and ``histogram``, None until the models were looked into.

    Raises:
        WorkspaceError: a run has no finished stage.
        ConfigError: a run's config.yaml cannot be read.
    """
    made = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": f"{platform.platform()}, Python {platform.python_version()}",
        "spp": __version__,
    }
    return {"made": made, "runs": [_gathered(run) for run in runs]}


def look_inside(
    run: Run,
    gathered: dict[str, Any],
    reporter: Reporter,
    *,
    prompts: Sequence[str] | None,
    layer: str | None,
) -> None:
    """Add ``samples`` and ``histogram`` to what was gathered of a run: these read its models.

    ``prompts``: None for no samples; empty for the first lines of the evaluation text. ``layer`` is
    a glob; without it the layer is taken whose output pruning moved most. What was not asked for by
    name and cannot be had is left out, with a warning.

    Raises:
        SppError: a prompt or ``layer`` was given, and they cannot be had.
    """
    try:
        config = validate(recorded_settings(run))
        from spp_cli.pipeline import dense_model  # not above: records need no torch
        from spp_cli.stages.stage import Sources

        folder, demo = dense_model(config, "report")
        for stage in gathered["manifests"]:
            run.check_files(stage)
    except SppError as error:
        if prompts or layer:
            raise
        gathered["warnings"].append(f"No samples and no histogram of weights: {error}.")
        return
    sources = Sources(folder, demo, {name: run.folder / name for name in gathered["manifests"]})
    with _unless_wanted(bool(layer), "histogram of weights", gathered):
        gathered["histogram"] = _histogram(config, sources, gathered, layer)
    if prompts is not None:
        with _unless_wanted(bool(prompts), "samples", gathered):
            gathered["samples"] = _samples(config, sources, reporter, prompts)


@contextmanager
def _unless_wanted(wanted: bool, what: str, gathered: dict[str, Any]) -> Iterator[None]:
    """Make a warning on the page of what hinders something that was not asked for by name."""
    try:
        yield
    except SppError as error:
        if wanted:
            raise
        gathered["warnings"].append(f"No {what}: {error}.")


def _histogram(
    config: SppConfig, sources: Any, gathered: Mapping[str, Any], layer: str | None
) -> dict[str, Any] | None:
    from spp_cli.stages.weights import weight_histogram

    layers: Mapping[str, Mapping[str, float]] = gathered["layers"]
    if not layers:
        return None
    most = max(layers, key=lambda name: layers[name].get("output_error", 0.0))
    return weight_histogram(config, sources, layer or most)


def _samples(
    config: SppConfig, sources: Any, reporter: Reporter, prompts: Sequence[str]
) -> dict[str, Any]:
    from spp_cli.stages.samples import samples

    return samples(config, sources, reporter, prompts=prompts)


def _gathered(run: Run) -> dict[str, Any]:
    status, warnings = run_status(run), []
    manifests: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        try:
            if manifest := run.manifest(stage):
                manifests[stage] = manifest.model_dump()
        except WorkspaceError as error:
            warnings.append(f"{error}.")
        if status["stages"][stage]["state"] == "stale":
            warnings.append(f"The {stage} is stale: what it read was made anew since.")
    if not manifests:
        raise WorkspaceError(
            f"run {run.name} has no finished stage to report on. Run: spp prune --run {run.name}"
        )
    settings = recorded_settings(run)
    pruned = manifests.get("prune", {}).get("metrics", {})
    return {
        "run": run.name,
        "model": str(settings.get("model.path")),
        "manifests": manifests,
        "status": status,
        "evaluation": evaluation_of(run),
        "log": _read(lambda: read_log(run.folder / "finetune" / LOG)) or [],
        "layers": pruned.get("layers", {}),
        "output_error_from": pruned.get("output_error_from"),
        "config": yaml12.dump(settings.values),
        "commands": _commands(run.name, manifests),
        "facts": facts(manifests),
        "warnings": warnings,
        "samples": None,
        "histogram": None,
    }


def _read(read: Callable[[], Any]) -> Any:
    with suppress(OSError, ValueError):
        return read()
    return None


def _commands(name: str, manifests: Mapping[str, Any]) -> list[str]:
    """Return what makes the run again from its configuration, saved under its name."""
    stages = ["run"] if all(stage in manifests for stage in STAGES) else list(manifests)
    comment = f"# the configuration below, saved as {name}.yaml"
    return [comment, *(f"spp {stage} {name}.yaml" for stage in stages), f"spp report {name}"]


def facts(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return versions, machine, seed and digests; where stages differ, all that there were."""
    versions: dict[str, list[str]] = {}
    for manifest in manifests.values():
        for package, version in {**manifest["versions"], "machine": manifest["platform"]}.items():
            versions.setdefault(package, []).append(version)
    metrics = {stage: manifest["metrics"] for stage, manifest in manifests.items()}
    pruned = manifests.get("prune", {})
    digests = {
        "dense model": pruned.get("settings", {}).get("model", {}).get("digest"),
        "calibration tokens": (metrics.get("prune", {}).get("calibration") or {}).get("digest"),
        "training rows": metrics.get("finetune", {}).get("train", {}).get("digest"),
        "keep masks": pruned.get("mask_digest"),
        **{f"output of {stage}": each["output_digest"] for stage, each in manifests.items()},
    }
    seeds = [str(manifest["seed"]) for manifest in manifests.values()]
    return {
        **{name: " / ".join(dict.fromkeys(found)) for name, found in versions.items()},
        "seed": " / ".join(dict.fromkeys(seeds)),
        **{name: digest for name, digest in digests.items() if digest},
    }
