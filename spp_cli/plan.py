"""What a configuration would do, found out without reading a weight: layers, ratios, bytes, stages.

A wrong setting is found here in seconds; so is a layer that does not suit the pattern.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from spp_cli.config import SppConfig
from spp_cli.data.tokens import resolve_length
from spp_cli.fingerprint import Difference, Fingerprint, differences
from spp_cli.memory import peak_memory
from spp_cli.models.activations import Offload, choose_offload
from spp_cli.models.checkpoint import Checkpoint, locate
from spp_cli.models.decoder import Decoder, Linear, select
from spp_cli.models.loading import compute_dtype, empty_model, resolve_device
from spp_cli.models.prunable import Prunable
from spp_cli.models.stored import StoredTensors
from spp_cli.models.unused import check_unused
from spp_cli.pipeline import digest_at_hand, settings_fingerprint
from spp_cli.pruning.engine import misfits
from spp_cli.pruning.needs import (
    CalibrationSize,
    held_in_one_pass,
    hidden_states,
    measuring_needs,
    prune_needs,
)
from spp_cli.pruning.orders import choose_order
from spp_cli.pruning.saved import KEPT, check_kept
from spp_cli.pruning.statistics import fewest
from spp_cli.sparsity.patterns import parse_pattern
from spp_cli.workspace import STAGES, Run, Workspace

__all__ = ["changed_settings", "plan", "stage_actions"]


def plan(config: SppConfig, run: str | None) -> dict[str, Any]:
    """Return what ``config`` would do, as a document of plain values.

    ``model``: path, kind, blocks, parameters, bytes. ``prune``: how, and for each of its
    ``layers`` name, shape, sparsity (None if it will be measured) and ``problem``, why it cannot be
    pruned so; ``dense``, what of the blocks stays dense, see ``Prunable.described``, and
    ``block_sparsity``, what the share of zeros in all their weights will be. ``needs``: bytes at
    the peak of pruning on the device, in memory and on disk, those read and written, and what
    Python and its ``libraries`` take of the memory besides. ``stages``: what is there of the run,
    and what would be done. ``problem``: what prune would refuse.

    Raises:
        SppError: the model's config or a setting is wrong.
    """
    settings = config.prune
    folder, _ = locate(
        config.model.path,
        config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        with_weights=False,
    )
    checkpoint = Checkpoint(folder, weights_needed=False)
    model = empty_model(checkpoint, trust_remote_code=config.model.trust_remote_code)
    decoder = Decoder(model)
    prunable = Prunable(decoder)
    linears = select(prunable.linears, settings.include, settings.exclude)
    pattern = parse_pattern(settings.pattern, settings.sparsity)
    patterns = {linear.name: pattern for linear in linears}
    settings.allocation.check(linears, pattern.sparsity)
    problems = misfits(linears, settings.method, patterns)
    if checkpoint.locations:  # its weights are here, and prune would refuse these
        weights = StoredTensors(checkpoint, model)
        check_unused(weights, model)
        for linear in linears:
            weights.dtype(f"{linear.name}.weight")

    ratios: Mapping[str, float] = {}  # none yet, if they will be measured
    if not settings.allocation.reads_text:
        ratios = settings.allocation.allocate(linears, pattern.sparsity, None).ratios
    pruned = sum(linear.weight.numel() for linear in linears)
    device, is_here = _device(config.model.device)
    stored = _stored_dtype(config, checkpoint, model)
    compute = compute_dtype(device) or stored
    text = _calibration(config, model.config)
    tokens = text.tokens if text else 0
    order: str = settings.order
    kinds = fewest(each.statistic for each in settings.asking)
    check_kept(order, settings.method, kinds)
    kept = kinds and order == "dense"
    if order == "auto":
        held = held_in_one_pass(tokens, linears, kinds)
        order = choose_order(pattern.sparsity, held, device, kinds) if is_here else "two-pass"

    def offload_of(count: int) -> Offload:
        """Return where the hidden states of so many tokens would be kept."""
        if settings.offload != "auto":
            return settings.offload
        return choose_offload(hidden_states(count, model.config), device) if is_here else "cpu"

    offload = offload_of(tokens)
    needs = prune_needs(
        decoder,
        linears,
        settings.method,
        settings.recover,
        KEPT if kept else kinds,
        text,
        keeps_statistics=bool(kept),
        order=order,
        offload=offload,
        on_gpu=device.type != "cpu",
        compute=compute,
        stored=stored,
    )
    if text and settings.allocation.reads_text:
        samples = min(settings.allocation.gradient_samples, text.samples)
        tokens_kept = samples * text.length * (len(decoder.blocks) + 1)
        needs = needs.after(
            measuring_needs(
                decoder,
                linears,
                passes=settings.allocation.passes,
                tokens_kept=tokens_kept,
                length=text.length,
                offload=offload_of(tokens_kept),
                on_gpu=device.type != "cpu",
                compute=compute,
                stored=stored,
            )
        )
    return {
        "model": {
            "path": config.model.path,
            "kind": model.config.model_type,
            "blocks": len(decoder.blocks),
            "parameters": (parameters := sum(p.numel() for p in model.parameters())),
            "bytes": checkpoint.size or parameters * stored.itemsize,
            "dtype": str(stored).removeprefix("torch."),
        },
        "prune": {
            "method": settings.method.name,
            "pattern": str(pattern),
            "sparsity": pattern.sparsity,
            "refine": settings.refine.name,
            "recover": settings.recover.name,
            "allocation": settings.allocation.name,
            "order": order if text else None,
            "offload": offload if text else None,
            "calibration": text and vars(text),
            "device": str(device),
            "layers": [
                _layer(linear, ratios.get(linear.name), problems.get(linear.name))
                for linear in decoder.all_linears()
                if linear.name in patterns
            ],
            "left_dense": [
                linear.name for linear in decoder.all_linears() if linear.name not in patterns
            ],
            **(blocks := prunable.described(patterns)),
            "block_sparsity": pattern.sparsity * pruned / blocks["block_weights"],
        },
        "needs": {**vars(needs), "libraries": peak_memory()},
        "run": run or config.run_name(),
        "stages": stage_actions(config, run),
        "problem": _told_once(problems),
    }


def _told_once(problems: Mapping[str, str]) -> str:
    """Return one line for the first of the layers, and how many more there are."""
    if not problems:
        return ""
    more = len(problems) - 1
    return next(iter(problems.values())) + (f" (and {more} more such layers)" if more else "")


def _layer(linear: Linear, ratio: float | None, problem: str | None) -> dict[str, Any]:
    return {
        "name": linear.name,
        "shape": list(linear.weight.shape),
        "sparsity": ratio,
        "problem": problem,
    }


def _device(configured: str) -> tuple[torch.device, bool]:
    """Return the device that is planned for, and whether this machine has it.

    Of a GPU elsewhere nothing is known, so the plan is the one that takes the least of it.
    """
    if configured.startswith("cuda") and not torch.cuda.is_available():
        return torch.device(configured), False
    return resolve_device(configured), True


def _stored_dtype(config: SppConfig, checkpoint: Checkpoint, model: Any) -> torch.dtype:
    """Return the type of most weights in the checkpoint; where none are there, what config says."""
    if config.model.dtype != "auto":
        return getattr(torch, config.model.dtype)
    sizes: dict[torch.dtype, int] = {}
    for name in checkpoint.locations:
        dtype = checkpoint.dtype(name)
        sizes[dtype] = sizes.get(dtype, 0) + math.prod(checkpoint.shape(name))
    if sizes:
        return max(sizes, key=sizes.__getitem__)
    return getattr(model.config.get_text_config(), "dtype", None) or torch.float32


def _calibration(config: SppConfig, model_config: Any) -> CalibrationSize | None:
    """Return how much text will flow; None if nothing asks for any."""
    settings = config.prune.calibration
    if not config.prune.reads_text:
        return None
    length = resolve_length(
        settings.sequence_length, model_config, setting="prune.calibration.sequence_length"
    )
    return CalibrationSize(settings.samples, length, settings.batch_size)


def stage_actions(config: SppConfig, name: str | None) -> dict[str, dict[str, str]]:
    """Return for each stage of the run its state and what ``spp run`` would do about it."""
    run = Workspace(config.workspace).run(name or config.run_name())
    found, anew = {}, False
    for stage in STAGES:
        state = run.state(stage)
        action = _action(run, stage, state, config, anew)
        found[stage] = {"state": state, "action": action}
        anew = anew or action != "nothing"
    return found


def _action(run: Run, stage: str, state: str, config: SppConfig, anew: bool) -> str:
    if state in ("missing", "running", "damaged"):
        return {"missing": "run", "running": "wait", "damaged": "refuse: damaged"}[state]
    changed = changed_settings(run, stage, config)
    if changed and stage != "eval":
        loses = "discards what is unfinished" if state == "partial" else "replaces it"
        return f"refuse: {'; '.join(map(str, changed))} (--force {loses}, --run NAME keeps it)"
    if anew or state == "stale" or changed:
        return "run again"
    return "resume" if state == "partial" else "nothing"


def changed_settings(run: Run, stage: str, config: SppConfig) -> list[Difference]:
    """Return what differs between ``config`` and what a stage was finished or begun with."""
    manifest = run.intact_manifest(stage)
    old = manifest.made_from() if manifest else run.unfinished(stage)
    if old is None:
        return []
    known, new = dict(old.settings), settings_fingerprint(stage, config, {})
    digest = digest_at_hand(config.model, Workspace(config.workspace)) if "model" in known else None
    if digest is None:
        known.pop("model", None)
    else:
        asked = {"digest": digest[:16], "dtype": config.model.dtype}
        new = replace(new, settings={**new.settings, "model": asked})
    return differences(Fingerprint(known, {}, old.seed, old.format), new)
