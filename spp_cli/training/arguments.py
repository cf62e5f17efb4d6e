"""What the Trainer is told, from the configuration and from how the command was started."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import TrainingArguments

from spp_cli import processes
from spp_cli.config import FinetuneConfig
from spp_cli.errors import MissingExtraError

__all__ = ["check_reports", "rows_per_step", "training_arguments"]

# package that each report needs; its extra has the name of the report
_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


def check_reports(reports: tuple[str, ...]) -> None:
    """Find out before the work, and not in it, that the package for a report is missing.

    Raises:
        MissingExtraError: with the extra to install.
    """
    for report in reports:
        if not any(map(find_spec, _PACKAGES[report])):
            purpose = f"finetune.report_to: {report}"
            raise MissingExtraError(_PACKAGES[report][0], report, purpose)


def rows_per_step(config: FinetuneConfig) -> int:
    """Return how many rows an optimizer step sees, over all processes."""
    return config.batch_size * config.gradient_accumulation_steps * processes.count()


def training_arguments(
    config: FinetuneConfig,
    folder: Path,
    *,
    rows: int,
    seed: int,
    device: torch.device,
    in_float16: bool = False,
    is_mixture: bool = False,
) -> TrainingArguments:
    """Return the Trainer's arguments for ``config`` on ``rows`` training rows.

    ``in_float16``: that is the type of the products, whose gradients vanish if the loss is not
    scaled. ``is_mixture``: parts of the model may have nothing to do in a step.
    """
    batches = math.ceil(math.ceil(rows / config.batch_size) / processes.count())
    steps = config.max_steps or math.ceil(
        config.epochs * math.ceil(batches / config.gradient_accumulation_steps)
    )
    evaluate_every = min(config.evaluate_every or math.ceil(steps / 5), steps)
    arguments = TrainingArguments(
        output_dir=str(folder),
        run_name=folder.parent.parent.name,
        seed=seed,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=math.ceil(config.warmup_ratio * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch",
        fp16=in_float16,
        eval_strategy="steps",
        eval_steps=evaluate_every,
        save_strategy="steps",
        save_steps=config.checkpoint_every or evaluate_every,
        save_total_limit=2,
        prediction_loss_only=True,
        logging_steps=max(1, steps // 200),
        logging_nan_inf_filter=False,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=list(config.report_to) or "none",
        ddp_find_unused_parameters=is_mixture,
        ddp_broadcast_buffers=False,  # they are tables that nothing changes
    )
    # Types are as finetune.precision says, whatever accelerate's configuration has.
    arguments.mixed_precision = "fp16" if arguments.fp16 else "no"
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more would mean threads, one for each GPU
    return arguments
