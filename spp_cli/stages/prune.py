"""spp prune: dense model in, sparse model and its keep masks out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spp_cli import processes
from spp_cli.allocation.dense import DenseModel
from spp_cli.config import PruneConfig, SppConfig
from spp_cli.errors import ConfigError
from spp_cli.fingerprint import write_json
from spp_cli.models.activations import ActivationStore, choose_offload
from spp_cli.models.checkpoint import Checkpoint, copy_companions
from spp_cli.models.decoder import select
from spp_cli.models.loading import compute_dtype, resolve_device
from spp_cli.models.origin import origin
from spp_cli.models.prunable import Prunable
from spp_cli.models.rewriting import CheckpointRewriter
from spp_cli.models.streaming import StreamedModel, open_model, stored_tensors
from spp_cli.models.unused import check_unused
from spp_cli.progress import Reporter
from spp_cli.pruning.engine import Recipe, check_fits, prune_blocks
from spp_cli.pruning.needs import held_in_one_pass, hidden_states
from spp_cli.pruning.orders import ORDERS, TwoPass, choose_order
from spp_cli.pruning.output_error import best_known
from spp_cli.pruning.saved import check_kept
from spp_cli.pruning.statistics import Statistic, fewest
from spp_cli.publishing import PROGRESS, RESUME
from spp_cli.reading import read_json
from spp_cli.sparsity.masks import FILE_NAME, save_masks
from spp_cli.sparsity.patterns import parse_pattern
from spp_cli.sparsity.verify import RECORD, write_sparsity_record
from spp_cli.stages import known
from spp_cli.stages.allocating import allocate
from spp_cli.stages.block_records import BlockRecords
from spp_cli.stages.calibration import calibration
from spp_cli.stages.stage import Result, Sources
from spp_cli.stages.work_behind import WorkBehind

__all__ = ["run"]

_WORTH_A_WARNING = 0.01  # of the weights in the blocks; less is convolutions, routers and the like


def run(config: SppConfig, sources: Sources, target: Path, reporter: Reporter) -> Result:
    """Prune the dense model block by block and write it, with its masks, into ``target``.

    One block is in memory at a time. Each is written when it is done, so that a pruning that was
    killed goes on with the next: the text flows once more through the blocks already pruned, to the
    same result bit for bit.
    """
    settings = config.prune
    device = resolve_device(config.model.device)
    source = Checkpoint(sources.model)
    cast_to = None if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    dtype = compute_dtype(device) or cast_to
    model = open_model(
        source,
        dtype=dtype,
        trust_remote_code=config.model.trust_remote_code,
    )
    decoder, blocks = model.decoder, len(model.decoder.blocks)
    pattern = parse_pattern(settings.pattern, settings.sparsity)
    prunable = Prunable(decoder)
    linears = select(prunable.linears, settings.include, settings.exclude)
    _warn_of_what_stays_dense(prunable.described([linear.name for linear in linears]), reporter)
    check_fits(linears, settings.method, {linear.name: pattern for linear in linears})
    settings.allocation.check(linears, pattern.sparsity)
    kinds = fewest(each.statistic for each in settings.asking)
    check_kept(settings.order, settings.method, kinds)
    stored = stored_tensors(model, source)
    if strays := check_unused(stored, model.model):
        reporter.warn(strays)
    stored_as = {linear.name: stored.dtype(f"{linear.name}.weight", cast_to) for linear in linears}
    rewriter = CheckpointRewriter(stored, target, decoder, cast_to)
    processes.decide(partial(_check_weights, rewriter, reporter))
    tokens = None
    if settings.reads_text:
        with processes.main_first():
            tokens = calibration(config, sources, model.model.config, reporter).tokens
    size = 1 if settings.method.one_by_one else settings.calibration.batch_size
    batches = _own_batches(tokens.tokens, size) if tokens else []
    read = sum(batch.numel() for batch in batches)

    def activations(count: int) -> ActivationStore:
        return _activations(config, count, model.model, device, target / RESUME)

    held = held_in_one_pass(read, linears, kinds)
    order = _order(settings, held, kinds, device, target)
    dense = DenseModel(model, batches, device, activations, reporter)
    kept = target / RESUME
    if tokens:
        kept = known.folder_of(sources, tokens, size, device, dtype) or kept
    if order == "dense" and kinds:
        dense = replace(dense, saved=known.statistics(kept, dense))
    shares = allocate(settings.allocation, linears, pattern, dense, kept)
    recipe = Recipe(
        settings.method,
        settings.refine,
        shares.patterns,
        stored_dtype=stored_as.__getitem__,
        recovery=settings.recover,
    )

    records = BlockRecords(target / RESUME / "blocks")
    done = 0
    if isinstance(model, StreamedModel):
        while done < blocks and rewriter.is_written(done) and records.is_done(done):
            done += 1
        if processes.is_main():
            rewriter.forget(done)  # else a block without a record would be pruned a second time
        done = processes.give_out(done)
        model.read_from(rewriter.read)
    if done:
        reporter.say(f"going on after block {done} of {blocks}")
    progress = {"done": done, "total": blocks, "unit": "blocks", "order": order}
    if processes.is_main():
        write_json(target / PROGRESS, progress)
    with WorkBehind() as behind:
        for block, layers in prune_blocks(
            model,
            batches,
            linears,
            recipe,
            # Where no statistic is asked for, one order is as good as another.
            order=dense.saved or ORDERS.get(order, TwoPass)(),
            device=device,
            activations=activations(read),
            done=done,
            reporter=reporter,
        ):
            if not processes.is_main():
                continue
            replaced = {
                f"{layer.linear.name}.weight": layer.linear.as_stored(layer.weight)
                for layer in layers
            }
            said = partial(write_json, target / PROGRESS, {**progress, "done": block + 1})
            behind.do(
                rewriter.begin(block, replaced).finish, records.begin(block, layers).finish, said
            )

    if not processes.is_main():
        return Result({})
    output = rewriter.finish()
    output += copy_companions(
        sources.model, target, None if cast_to is None else config.model.dtype
    )
    packed, shapes, of_layers = records.collect(blocks)
    digest = save_masks(target, packed, shapes)
    _tell_of_thin_text(of_layers, reporter)
    figures = write_sparsity_record(
        target, str(pattern), packed, shapes, digest, prunable.described(shapes)
    )
    output += [FILE_NAME, RECORD]
    shutil.rmtree(target / RESUME, ignore_errors=True)
    return Result(
        {
            **figures,
            "linears": len(linears),
            "order": order if batches else None,
            "output_error_from": best_known(kinds),
            "layers": {
                name: {"target": shares.ratios[name], **layer} for name, layer in of_layers.items()
            },
            "allocation": shares.described(),
            "calibration": tokens and tokens.described(),
            "origin": origin(sources.model),
        },
        output,
        digest,
    )


def _warn_of_what_stays_dense(blocks: Mapping[str, Any], reporter: Reporter) -> None:
    """Name the largest matrices that stay dense, if that is a share to speak of."""
    dense = blocks["dense"]
    share = sum(entry["weights"] for entry in dense.values()) / blocks["block_weights"]
    if share > _WORTH_A_WARNING:
        (name, entry), *others = dense.items()
        more = f", and {len(others)} more" if others else ""
        reporter.warn(
            f"{share:.0%} of the weights in the decoder blocks stay dense: {name}, which "
            f"{entry['why']}{more}. Sparsity is counted over the linear layers that are pruned; "
            "spp plan lists the others"
        )


def _check_weights(rewriter: CheckpointRewriter, reporter: Reporter) -> None:
    """Refuse weights that cannot be stored, unless a pruning that is resumed did so before."""
    if not rewriter.is_written(0):
        rewriter.check_source(reporter)


def _tell_of_thin_text(figures: Mapping[str, Mapping[str, Any]], reporter: Reporter) -> None:
    """Warn of the layers, experts mostly, that have on record how few ``tokens`` reached them."""
    few = {name: figure["tokens"] for name, figure in figures.items() if "tokens" in figure}
    unreached = [name for name, tokens in few.items() if not tokens]
    if unreached:
        reporter.warn(
            f"no calibration text reached {_and_others(unreached)}: pruned by magnitude. "
            "Raise prune.calibration.samples"
        )
    if thin := sorted((name for name in few if few[name]), key=few.__getitem__):
        reporter.warn(
            f"fewer tokens than it has inputs reached {_and_others(thin)}, {few[thin[0]]} at the "
            "least: what is solved from them rests on little. Raise prune.calibration.samples"
        )


def _and_others(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} other linear layers" if len(names) > 1 else "")


def _own_batches(tokens: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Return the batches that flow through this process: of several, each has its share."""
    number = processes.count()
    if len(tokens) < number:
        raise ConfigError(
            f"prune.calibration.samples is {len(tokens)}, and there are {number} processes. "
            f"Set at least {number}, or start fewer"
        )
    batches = tokens.split(min(batch_size, len(tokens) // number))
    return list(batches[processes.number() :: number])


def _order(
    settings: PruneConfig,
    held: int,
    kinds: Sequence[type[Statistic]],
    device: torch.device,
    target: Path,
) -> str:
    """Return the name of the order: that of a pruning that was interrupted, if it was chosen here.

    So its blocks are all of one kind, even if the memory for ``held`` bytes is there no longer.
    """
    order: str = settings.order
    if order == "auto":
        order = choose_order(settings.sparsity, held, device, kinds)
        with suppress(OSError, ValueError):
            order = read_json(target / PROGRESS).get("order", order)
    return str(processes.give_out(order))


def _activations(
    config: SppConfig, tokens: int, model: Any, device: torch.device, folder: Path
) -> ActivationStore:
    """Return the place for the hidden states of ``tokens``, as ``prune.offload`` says."""
    offload = config.prune.offload
    if offload == "auto":
        offload = choose_offload(hidden_states(tokens, model.config), device)
    return ActivationStore(offload, device, folder / f"activations-{processes.number()}")
