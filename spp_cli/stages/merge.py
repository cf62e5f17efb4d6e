"""spp merge: pruned model and adapter in, one plain sparse model out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spp_cli.config import SppConfig
from spp_cli.errors import ConfigError
from spp_cli.models.checkpoint import Checkpoint, copy_companions
from spp_cli.models.loading import compute_dtype, resolve_device
from spp_cli.models.rewriting import CheckpointRewriter
from spp_cli.models.rounding import type_name
from spp_cli.progress import Reporter
from spp_cli.publishing import ARCHIVE
from spp_cli.sparsity.archive import pack_folder
from spp_cli.sparsity.masks import FILE_NAME, save_masks
from spp_cli.sparsity.verify import RECORD, recorded_blocks, recorded_pattern, write_sparsity_record
from spp_cli.stages.merge_check import Losses, MergeCheck, costs_much, refuse_lost_update
from spp_cli.stages.merged_weights import MergedWeights, merge_weights
from spp_cli.stages.sparse_model import adapted_model
from spp_cli.stages.stage import Result, Sources

__all__ = ["run"]


def run(config: SppConfig, sources: Sources, target: Path, reporter: Reporter) -> Result:
    """Multiply the adapter into the weights, in float32, round once, and check what came of it.

    Raises:
        CheckFailed: a pruned weight would be filled, a merged one is NaN or infinite, or nearly all
            of the update is lost by rounding.
        ConfigError: ``model.dtype`` asks for another type than the model was pruned in.
    """
    settings, prune = config.merge, sources.stages["prune"]
    checkpoint = Checkpoint(prune)
    _check_dtype(config, checkpoint)
    stored_in = checkpoint.main_dtype() or torch.float32
    dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
    device = resolve_device(config.model.device)
    sparse = adapted_model(
        prune,
        sources.stages["finetune"],
        device=device,
        dtype=compute_dtype(device) or (dtype and torch.promote_types(stored_in, dtype)),
        trust_remote_code=config.model.trust_remote_code,
    )
    check = MergeCheck(config, sources, sparse)
    merged = merge_weights(config, sparse, dtype, reporter)
    losses, difference = check.merged()
    how = f"{type_name(dtype or stored_in)} ({merged.rounded()})"
    if not settings.allow_loss:
        refuse_lost_update(merged.cost, losses, how)

    rewriter = CheckpointRewriter(sparse.stored, target, sparse.decoder, dtype, "merge.dtype")
    for block in range(len(sparse.decoder.blocks)):
        rewriter.begin(block, merged.weights).finish()
    output = rewriter.finish()
    output += copy_companions(prune, target, None if dtype is None else settings.dtype)
    packed = sparse.masks.as_stored()
    digest = save_masks(target, packed, sparse.masks.shapes)
    pattern = str(recorded_pattern(prune))
    figures = write_sparsity_record(
        target, pattern, packed, sparse.masks.shapes, digest, recorded_blocks(prune)
    )
    output += [FILE_NAME, RECORD]
    _say(merged, losses, how, reporter)
    reporter.say(f"largest difference of a logit, adapter against merged: {difference:.3g}")
    metrics: dict[str, Any] = {
        **figures,
        "linears": len(merged.weights),
        "largest_logit": check.largest_logit,
        "largest_logit_difference": difference,
        "kept_weights_rounded_to_zero": merged.cost.to_zero,
        "update_lost_to_the_mask": merged.lost_to_the_mask,
        "rounding": {
            "dtype": type_name(dtype or stored_in),
            "layers": dict(merged.layers),
            **merged.cost.described(),
            "loss": None if losses is None else losses.described(),
        },
    }
    if settings.packed:
        before, after = pack_folder(target, target / ARCHIVE)
        output.append(ARCHIVE)
        metrics["bytes"], metrics["packed_bytes"] = before, after
        reporter.say(f"packed: {after:,} bytes of {before:,}")
    return Result(metrics, output, digest)


def _check_dtype(config: SppConfig, checkpoint: Checkpoint) -> None:
    asked = config.model.dtype
    found = {type_name(checkpoint.dtype(name)) for name in checkpoint.locations}
    if config.merge.dtype == "auto" and asked not in {"auto", *found}:
        raise ConfigError(
            f"model.dtype is {asked}, and the model was pruned in {', '.join(sorted(found))}: that "
            f"key counts for spp prune. For the merged model set merge.dtype: {asked}"
        )


def _say(merged: MergedWeights, losses: Losses | None, how: str, reporter: Reporter) -> None:
    """Say what rounding and the mask cost, as a warning if it is much."""
    cost = merged.cost
    tell = reporter.warn if costs_much(cost, losses) else reporter.say
    tell(
        f"rounded to {how}: {cost.unchanged / cost.kept:.1%} of the kept weights stay as pruned; "
        f"the error is {cost.error_share:.1%} of the update by norm, and {cost.update_kept:.0%} of "
        "the update is left"
    )
    if losses:
        tell(str(losses))
    if merged.changed:
        reporter.warn(
            "the adapter fills pruned weights, and the mask was applied again: "
            f"{merged.lost_to_the_mask:.0%} of its change, by squares, is lost. "
            "Train spp to lose nothing"
        )
    if cost.to_zero:
        reporter.say(f"{cost.to_zero:,} kept weights rounded to zero")
