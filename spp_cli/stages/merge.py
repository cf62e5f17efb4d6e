"""spp merge: pruned model and adapter in, one plain sparse model out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spp_cli.adapters.attach import adapted_layers
from spp_cli.config import SppConfig
from spp_cli.errors import CheckFailed
from spp_cli.models.checkpoint import copy_companions
from spp_cli.models.loading import compute_dtype, resolve_device
from spp_cli.models.rewriting import CheckpointRewriter
from spp_cli.progress import Reporter
from spp_cli.publishing import ARCHIVE
from spp_cli.sparsity.archive import pack_folder
from spp_cli.sparsity.masks import FILE_NAME, save_masks
from spp_cli.sparsity.verify import RECORD, recorded_blocks, recorded_pattern, write_sparsity_record
from spp_cli.stages.sparse_model import adapted_model, float32_logits
from spp_cli.stages.stage import Result, Sources

__all__ = ["run"]


def run(config: SppConfig, sources: Sources, target: Path, reporter: Reporter) -> Result:
    """Multiply the adapter into the weights, in float32, round once, and check what came of it.

    Raises:
        CheckFailed: a pruned weight would be filled, or a merged one is NaN or infinite.
    """
    prune = sources.stages["prune"]
    device = resolve_device(config.model.device)
    sparse = adapted_model(
        prune,
        sources.stages["finetune"],
        device=device,
        dtype=compute_dtype(device),
        trust_remote_code=config.model.trust_remote_code,
    )
    model = sparse.model
    tokens = torch.randint(  # any text will do: two models are compared, not one judged
        model.config.vocab_size,
        (config.merge.check_sequences, config.merge.check_length),
        generator=torch.Generator().manual_seed(config.seed),
    ).to(device)
    adapter_logits = float32_logits(model, tokens)

    replaced, rounded_to_zero, refused, changed = {}, 0, 0.0, 0.0
    layers = adapted_layers(model)
    with reporter.task("merge", len(layers), "linears") as progress:
        for name, layer in layers.items():
            linear = sparse.linears[name]
            stored = sparse.stored.read(f"{name}.weight")
            exact = layer.effective_weight(linear.as_stored(stored)).cpu()
            keep = sparse.masks[name]
            if not layer.keeps_zeros:
                change = exact - linear.as_stored(stored)
                changed += change.square().sum().item()
                refused += change.masked_fill_(keep, 0).square().sum().item()
                exact.masked_fill_(~keep, 0)
            merged = exact.to(stored.dtype)
            _refuse_damage(name, merged, keep)
            rounded_to_zero += int((keep & (linear.as_stored(stored) != 0) & (merged == 0)).sum())
            replaced[f"{name}.weight"] = linear.as_stored(merged).contiguous()
            layer.set_weight(merged)  # from here on it computes with what is written
            progress.advance(1, name)
    difference = (float32_logits(model, tokens) - adapter_logits).abs().max().item()

    rewriter = CheckpointRewriter(sparse.stored, target, sparse.decoder)
    for block in range(len(sparse.decoder.blocks)):
        rewriter.begin(block, replaced).finish()
    output = rewriter.finish() + copy_companions(prune, target)
    packed = sparse.masks.as_stored()
    digest = save_masks(target, packed, sparse.masks.shapes)
    pattern = str(recorded_pattern(prune))
    figures = write_sparsity_record(
        target, pattern, packed, sparse.masks.shapes, digest, recorded_blocks(prune)
    )
    output += [FILE_NAME, RECORD]
    reporter.say(f"largest difference of a logit, adapter against merged: {difference:.3g}")
    if changed:
        reporter.warn(
            "the adapter fills pruned weights, and the mask was applied again: "
            f"{refused / changed:.0%} of its change, by squares, is lost. Train spp to lose nothing"
        )
    if rounded_to_zero:
        reporter.say(f"{rounded_to_zero:,} kept weights rounded to zero")
    metrics: dict[str, Any] = {
        **figures,
        "linears": len(layers),
        "largest_logit": adapter_logits.abs().max().item(),
        "largest_logit_difference": difference,
        "kept_weights_rounded_to_zero": rounded_to_zero,
        "update_lost_to_the_mask": refused / changed if changed else 0.0,
    }
    if config.merge.packed:
        before, after = pack_folder(target, target / ARCHIVE)
        output.append(ARCHIVE)
        metrics["bytes"], metrics["packed_bytes"] = before, after
        reporter.say(f"packed: {after:,} bytes of {before:,}")
    return Result(metrics, output, digest)


def _refuse_damage(name: str, merged: torch.Tensor, keep: torch.Tensor) -> None:
    if not merged.isfinite().all():  # first: NaN and infinity count as filled, too
        raise CheckFailed(
            f"merge makes NaN or infinity in {name}. Nothing was saved. "
            "Finetune again with a lower finetune.learning_rate"
        )
    filled = int((merged.masked_fill(keep, 0) != 0).sum())
    if filled:
        raise CheckFailed(
            f"merge would fill {filled} of {int((~keep).sum())} pruned weights in {name}. "
            "Nothing was saved. The adapter breaks its promise to keep zeros"
        )
