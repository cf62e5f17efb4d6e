"""spp prune: dense model in, sparse model and its keep masks out."""

from __future__ import annotations

from pathlib import Path

import torch

from spp_cli.config import SppConfig
from spp_cli.data.tokens import TokenSet, calibration_tokens, check_vocabulary, resolve_length
from spp_cli.models.checkpoint import Checkpoint, copy_companions, copy_with
from spp_cli.models.decoder import Decoder, select
from spp_cli.models.loading import compute_dtype, load_model, load_tokenizer, resolve_device
from spp_cli.progress import Reporter
from spp_cli.pruning.engine import check_fits, prune_blocks
from spp_cli.sparsity.masks import pack, save_masks
from spp_cli.sparsity.patterns import parse_pattern
from spp_cli.sparsity.verify import write_sparsity_record
from spp_cli.stages.stage import Result, Sources

__all__ = ["run"]


def run(config: SppConfig, sources: Sources, target: Path, reporter: Reporter) -> Result:
    """Prune the dense model block by block and write it, with its masks, into ``target``."""
    settings, trusted = config.prune, config.model.trust_remote_code
    device = resolve_device(config.model.device)
    source = Checkpoint(sources.model)
    cast_to = None if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    pattern = parse_pattern(settings.pattern, settings.sparsity)
    model = load_model(source, dtype=compute_dtype(device) or cast_to, trust_remote_code=trusted)
    decoder = Decoder(model)
    linears = select(decoder.all_linears(), settings.include, settings.exclude)
    check_fits(linears, settings.method, pattern)
    stored_as = {
        linear.name: source.stored_name(f"{linear.name}.weight", model.base_model_prefix)
        for linear in linears
    }
    stored_dtypes = {name: cast_to or source.tensor(stored_as[name]).dtype for name in stored_as}

    calibration: TokenSet | None = None
    batches: list[torch.Tensor] = []
    if settings.method.statistic is not None:
        length = resolve_length(
            settings.calibration.sequence_length,
            model.config,
            setting="prune.calibration.sequence_length",
        )
        tokenizer = load_tokenizer(sources.model, trust_remote_code=trusted)
        calibration = calibration_tokens(settings.calibration, tokenizer, length, demo=sources.demo)
        check_vocabulary(int(calibration.tokens.max()), model.config)
        batches = list(calibration.tokens.split(settings.calibration.batch_size))
        samples = len(calibration.tokens)
        reporter.say(f"calibration: {samples} × {length} tokens of {calibration.source}")

    replaced, packed, shapes, layers = {}, {}, {}, {}
    for layer in prune_blocks(
        decoder,
        batches,
        linears,
        settings.method,
        pattern,
        stored_dtype=stored_dtypes.__getitem__,
        device=device,
        reporter=reporter,
    ):
        name = layer.linear.name
        replaced[stored_as[name]] = layer.linear.as_stored(layer.weight).contiguous()
        packed[name], shapes[name] = pack(layer.keep), tuple(layer.keep.shape)
        layers[name] = {"sparsity": layer.sparsity, **layer.record}

    copy_with(source, target, replaced, cast_to)
    copy_companions(sources.model, target, None if cast_to is None else config.model.dtype)
    digest = save_masks(target, packed, shapes)
    overall = write_sparsity_record(target, str(pattern), packed, shapes, digest)
    metrics = {
        "sparsity": overall,
        "linears": len(linears),
        "layers": layers,
        "calibration": None
        if calibration is None
        else {
            "source": calibration.source,
            "recipe": calibration.recipe,
            "samples": len(calibration.tokens),
            "length": calibration.tokens.shape[1],
            "digest": calibration.digest,
        },
    }
    return Result(metrics, digest)
