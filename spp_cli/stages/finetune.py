"""spp finetune: pruned model in, the adapter that wins back its quality out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from spp_cli import processes
from spp_cli.adapters.attach import CONFIG, WEIGHTS, save_adapter
from spp_cli.config import FinetuneConfig, SppConfig
from spp_cli.errors import ConfigError, MissingExtraError
from spp_cli.evaluation.perplexity import exp_nats
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.experts import has_experts
from spp_cli.models.loading import compute_dtype, load_model, resolve_device
from spp_cli.progress import Reporter
from spp_cli.publishing import LOG, LOSS_PLOT, PROGRESS, RESUME, TENSORBOARD
from spp_cli.reporting.loss_plot import draw_losses
from spp_cli.stages.sparse_model import pruned_model
from spp_cli.stages.stage import Result, Sources
from spp_cli.stages.training_data import training_data
from spp_cli.training.arguments import check_reports, rows_per_step, training_arguments
from spp_cli.training.callbacks import CheckMasks
from spp_cli.training.distillation import Distillation, share_equal_tensors
from spp_cli.training.mask_check import MaskCheck
from spp_cli.training.sharding import check_launch, loading_device
from spp_cli.training.trainer import AdapterTrainer

__all__ = ["run"]


def run(config: SppConfig, sources: Sources, target: Path, reporter: Reporter) -> Result:
    """Train adapters on the pruned model of ``sources`` and leave the best of them in ``target``.

    Checkpoints go below the folder for resuming; training goes on from the newest that is whole.
    Several processes share each step's rows out among them, and one writes.
    """
    settings, trusted = config.finetune, config.model.trust_remote_code
    check_reports(settings.report_to)
    device = resolve_device(config.model.device)
    if device.index is not None:
        torch.cuda.set_device(device)  # the Trainer takes the current one
    set_seed(config.seed)
    sparse = pruned_model(
        sources.stages["prune"],
        dtype=_dtype(settings.precision, device),
        trust_remote_code=trusted,
    )
    is_mixture = has_experts(sparse.model)
    check_launch(is_mixture=is_mixture)
    names = sparse.choose(settings.target_modules, settings.exclude_modules)
    total = sum(p.numel() for p in sparse.model.parameters())
    packed = settings.base_storage == "packed"
    sparse.load(loading_device(device), settings.adapter, names, packed=packed)
    trainable = sum(p.numel() for p in sparse.model.parameters() if p.requires_grad)
    total += trainable

    data = training_data(config, sources, sparse.model, reporter)
    reporter.say(f"trainable: {trainable:,} of {total:,} parameters in {len(names)} linears")
    reporter.say(f"each step: {_step(settings)}")

    description = {
        "format": 1,
        "adapter": settings.adapter.model_dump(mode="json"),
        "layers": names,
        "mask_digest": sparse.masks.digest,
    }
    if settings.gradient_checkpointing:
        _recompute_activations(sparse.model)
    arguments = training_arguments(
        settings,
        target / RESUME,
        rows=len(data.train),
        seed=config.seed,
        device=device,
        # Not as finetune.precision says, which may leave it to the model.
        in_float16=any(p.dtype == torch.float16 for p in sparse.model.parameters()),
        is_mixture=is_mixture,
    )
    check = MaskCheck(sparse.decoder.blocks, sparse.decoder.path, sparse.masks)
    log = target / LOG
    trainer = AdapterTrainer(
        model=sparse.model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.validation,
        blocks=sparse.decoder.blocks,
        description=description,
        masks=CheckMasks(check, settings.check_mask_every or int(arguments.eval_steps)),
        reporter=reporter,
        log=log,
        tensorboard=target / TENSORBOARD,
        progress=target / PROGRESS,
        distillation=_distillation(config, sources, sparse.model, device),
        b_ratio=settings.b_learning_rate_ratio,
    )
    trainer.train_to_end()
    best_step, after = trainer.load_best()
    check.run(best_step)
    save_adapter(sparse.model, target, description)
    if not processes.is_main():
        return Result({})
    before = trainer.loss_before()
    output = [WEIGHTS, CONFIG, LOG]
    output += [TENSORBOARD] * (target / TENSORBOARD).exists()
    try:
        draw_losses(log, target / LOSS_PLOT)
        output.append(LOSS_PLOT)
    except MissingExtraError as error:
        reporter.say(str(error))
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
            "processes": processes.count(),
            "rows_per_step": rows_per_step(settings),
            "trainable_parameters": trainable,
            "total_parameters": total,
            "linears": len(names),
            **data.described(),
        },
        output,
        sparse.masks.digest,
    )


def _dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the type of the products; None: as stored."""
    return compute_dtype(device) if precision == "auto" else getattr(torch, precision)


def _distillation(
    config: SppConfig, sources: Sources, student: Any, device: torch.device
) -> Distillation | None:
    """Return what learns from the dense model, which is loaded for it; None if nothing does."""
    settings = config.finetune
    if not settings.distill:
        return None
    teacher = load_model(
        Checkpoint(sources.model),
        dtype=_dtype(settings.precision, device),
        trust_remote_code=config.model.trust_remote_code,
    )
    vocabularies = [model.get_output_embeddings().weight.shape[0] for model in (teacher, student)]
    if len(set(vocabularies)) > 1:
        raise ConfigError(
            f"model.path is {config.model.path!r}, whose vocabulary of {vocabularies[0]:,} is not "
            f"that of the pruned model, {vocabularies[1]:,}. Name the model that was pruned"
        )
    share_equal_tensors(teacher, student)
    return Distillation(teacher.to(device), settings.distill, settings.distill_temperature)


def _recompute_activations(model: Any) -> None:
    # transformers renamed it; the Trainer's own setting warns of that on every run.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def _step(settings: FinetuneConfig) -> str:
    """Return "128 rows: 4 at once × 32 times × 1 process"."""
    number = processes.count()
    return (
        f"{rows_per_step(settings)} rows: {settings.batch_size} at once × "
        f"{settings.gradient_accumulation_steps} times × "
        f"{number} process{'es' if number > 1 else ''}"
    )
