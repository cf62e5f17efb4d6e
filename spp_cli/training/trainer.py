"""transformers.Trainer for adapters: checkpoints hold the adapter and never the frozen base."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from spp_cli.adapters.attach import load_adapter, save_adapter
from spp_cli.config import FinetuneConfig
from spp_cli.progress import Reporter
from spp_cli.training.callbacks import KeepBest, Progress

__all__ = ["AdapterTrainer", "newest_checkpoint", "pad_rows", "training_arguments"]

_COMPLETE = "complete.json"  # written last, with the size of every file of the checkpoint


def pad_rows(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Return one batch, rows padded on the right; padding is neither attended to nor trained on.

    Where rows have ``position_ids``, being packed, padding is one more row of each: it has
    positions of its own, and there is no attention mask, which would join the rows again.
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, filler: int) -> Tensor:
        return torch.tensor([row[key] + [filler] * (longest - len(row[key])) for row in rows])

    batch = {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100)}
    if "position_ids" in rows[0]:
        positions = (row["position_ids"] for row in rows)
        batch["position_ids"] = torch.tensor([p + list(range(longest - len(p))) for p in positions])
        return batch
    lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
    batch["attention_mask"] = (torch.arange(longest) < lengths).long()
    return batch


def training_arguments(
    config: FinetuneConfig, folder: Path, *, rows: int, seed: int, device: torch.device
) -> TrainingArguments:
    """Return the Trainer's arguments for ``config`` on ``rows`` training rows."""
    batches = math.ceil(rows / config.batch_size)
    steps = config.max_steps or math.ceil(
        config.epochs * math.ceil(batches / config.gradient_accumulation_steps)
    )
    evaluate_every = min(config.evaluate_every or math.ceil(steps / 5), steps)
    return TrainingArguments(
        output_dir=str(folder),
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
        fp16=config.precision == "float16" and device.type == "cuda",
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
        report_to="none",
    )


class AdapterTrainer(Trainer):
    """A Trainer whose checkpoints hold adapter, optimizer, scheduler and random states.

    ``description`` is saved with each adapter. Losses go to ``reporter``, and to ``log`` as JSON
    lines; how many steps are done also goes to ``progress``, as JSON.

    Raises:
        NumericalError: from ``train``, when the loss is NaN or infinite.
    """

    def __init__(
        self,
        *,
        description: dict[str, Any],
        reporter: Reporter,
        log: Path,
        progress: Path,
        **keywords: Any,
    ) -> None:
        super().__init__(data_collator=pad_rows, **keywords)
        self.description = description
        for callback in list(self.callback_handler.callbacks):
            if type(callback).__name__ == "PrinterCallback":
                self.remove_callback(callback)
        self._progress = Progress(reporter, log, progress)
        self.add_callback(self._progress)
        self._best = KeepBest(Path(self.args.output_dir) / "best", self._save_to)
        self.add_callback(self._best)

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        """Train as the Trainer does; an error takes the bar off the screen before it is shown."""
        with self._progress.bars:
            return super().train(*arguments, **keywords)

    def mean_loss(self) -> float:
        """Return the mean loss of all steps, those before a kill included."""
        total, last = 0.0, 0
        for entry in self.state.log_history:
            if "loss" in entry:  # the mean since the line before
                total += entry["loss"] * (entry["step"] - last)
                last = entry["step"]
        return total / max(last, 1)

    def load_best(self) -> int:
        """Put the best adapter so far into the model; return the step after which it was saved.

        Step 0 is the pruned model as it came.
        """
        assert self.model is not None
        load_adapter(self.model, self._best.folder)
        return int(self._best.best()["step"])

    def _save_to(self, folder: Path) -> None:
        assert self.model is not None
        save_adapter(self.model, folder, self.description)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            self._save_to(Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
            (folder / _COMPLETE).write_text(json.dumps(sizes))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        assert self.model is not None
        load_adapter(self.model, Path(resume_from_checkpoint))


def newest_checkpoint(folder: Path, reporter: Reporter) -> Path | None:
    """Return the newest whole checkpoint below ``folder``; None if there is none.

    A checkpoint that a kill left unfinished is removed, with a word about it.
    """
    found = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*")}
    for step in sorted(found, reverse=True):
        if _is_complete(found[step]):
            reporter.say(f"going on from step {step}")
            return found[step]
        reporter.warn(f"the checkpoint of step {step} is unfinished; it is left out")
        shutil.rmtree(found[step])
    return None


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / _COMPLETE).read_text())
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False
