"""spp finetune: pruned model in, the adapter that wins back its quality out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from spp_cli.adapters.attach import save_adapter
from spp_cli.config import SppConfig
from spp_cli.evaluation.perplexity import exp_nats
from spp_cli.models.loading import compute_dtype, resolve_device
from spp_cli.progress import Reporter
from spp_cli.publishing import PROGRESS, RESUME
from spp_cli.stages.sparse_model import pruned_model
from spp_cli.stages.stage import Result, Sources
from spp_cli.stages.training_data import training_data
from spp_cli.training.trainer import AdapterTrainer, newest_checkpoint, training_arguments

__all__ = ["run"]


def run(config: SppConfig, sources: Sources, target: Path, reporter: Reporter) -> Result:
    """Train adapters on the pruned model of ``sources`` and leave the best of them in ``target``.

    Checkpoints go below the folder for resuming; training goes on from the newest that is whole.
    """
    settings, trusted = config.finetune, config.model.trust_remote_code
    device = resolve_device(config.model.device)
    set_seed(config.seed)
    sparse = pruned_model(
        sources.stages["prune"],
        dtype=_dtype(settings.precision, device),
        trust_remote_code=trusted,
    )
    names = sparse.choose(settings.target_modules, settings.exclude_modules)
    total = sum(p.numel() for p in sparse.model.parameters())
    packed = settings.base_storage == "packed"
    sparse.load(device, settings.adapter, names, packed=packed)
    trainable = sum(p.numel() for p in sparse.model.parameters() if p.requires_grad)
    total += trainable

    data = training_data(config, sources, sparse.model, reporter)
    reporter.say(f"trainable: {trainable:,} of {total:,} parameters in {len(names)} linears")

    description = {
        "format": 1,
        "adapter": settings.adapter.model_dump(mode="json"),
        "layers": names,
        "mask_digest": sparse.masks.digest,
    }
    sparse.model.config.use_cache = False
    if settings.gradient_checkpointing:
        _recompute_activations(sparse.model)
    checkpoints = target / RESUME
    trainer = AdapterTrainer(
        model=sparse.model,
        args=training_arguments(
            settings, checkpoints, rows=len(data.train), seed=config.seed, device=device
        ),
        train_dataset=data.train,
        eval_dataset=data.validation,
        description=description,
        reporter=reporter,
        log=target / "log.jsonl",
        progress=target / PROGRESS,
    )
    before = trainer.evaluate()["eval_loss"]
    newest = newest_checkpoint(checkpoints, reporter)
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    best_step = trainer.load_best()
    after = trainer.evaluate()["eval_loss"]
    save_adapter(sparse.model, target, description)
    reporter.say(
        f"validation perplexity: {exp_nats(before):.2f} before, {exp_nats(after):.2f} after"
    )
    return Result(
        {
            "validation_loss_before": before,
            "validation_loss_after": after,
            "validation_perplexity_before": exp_nats(before),
            "validation_perplexity_after": exp_nats(after),
            "train_loss": trainer.mean_loss(),
            "steps": trainer.state.global_step,
            "best_step": best_step,
            "trainable_parameters": trainable,
            "total_parameters": total,
            "linears": len(names),
            **data.described(),
        },
        sparse.masks.digest,
    )


def _dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the type of the products; None: as stored."""
    return compute_dtype(device) if precision == "auto" else getattr(torch, precision)


def _recompute_activations(model: Any) -> None:
    # transformers renamed it; the Trainer's own setting warns of that on every run.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
