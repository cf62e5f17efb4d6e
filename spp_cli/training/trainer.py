"""transformers.Trainer for adapters: checkpoints hold the adapter and never the frozen base."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput

from spp_cli import memory, processes
from spp_cli.adapters.attach import load_adapter, save_adapter
from spp_cli.errors import NumericalError
from spp_cli.models.cross_entropy import IGNORED
from spp_cli.progress import Reporter
from spp_cli.training import sharding
from spp_cli.training.callbacks import CheckMasks, KeepBest, Progress
from spp_cli.training.checkpoints import damage_named, mark_complete, newest_checkpoint
from spp_cli.training.distillation import Distillation
from spp_cli.training.objectives.causal import (
    causal_loss,
    count_predicted,
    model_outputs,
    row_losses,
)
from spp_cli.training.schedule import rate_factor

__all__ = ["AdapterTrainer", "pad_rows"]


def pad_rows(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Return one batch, rows padded on the right; padding is neither attended to nor trained on.

    Where rows have ``position_ids``, being packed, padding is one more row of each: it has
    positions of its own, and there is no attention mask, which would join the rows again.
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, filler: int) -> Tensor:
        return torch.tensor([row[key] + [filler] * (longest - len(row[key])) for row in rows])

    batch = {"input_ids": padded("input_ids", 0), "labels": padded("labels", IGNORED)}
    if "position_ids" in rows[0]:
        positions = (row["position_ids"] for row in rows)
        batch["position_ids"] = torch.tensor([p + list(range(longest - len(p))) for p in positions])
        return batch
    lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
    batch["attention_mask"] = (torch.arange(longest) < lengths).long()
    return batch


class AdapterTrainer(Trainer):
    """A Trainer whose checkpoints hold adapter, optimizer, scheduler and random states.

    ``description`` is saved with each adapter. Losses go to ``reporter``, and to ``log`` as JSON
    lines; how many steps are done also goes to ``progress``, as JSON. ``blocks`` are the decoder
    blocks, of which each process holds a part if the model is sharded. Each adapter's B learns
    ``b_ratio`` times as fast as the rest.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[nn.Module],
        description: dict[str, Any],
        masks: CheckMasks,
        reporter: Reporter,
        log: Path,
        tensorboard: Path,
        progress: Path,
        distillation: Distillation | None = None,
        b_ratio: float = 1.0,
        **keywords: Any,
    ) -> None:
        self._blocks = blocks
        super().__init__(data_collator=pad_rows, **keywords)
        self.model_accepts_loss_kwargs = (
            True  # what compute_loss returns is not to be divided again
        )
        self.description = description
        self._distillation = distillation
        self._b_ratio = b_ratio
        self._reporter = reporter
        self._tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self._logged_at = time.monotonic()
        for callback in list(self.callback_handler.callbacks):
            if type(callback).__name__ == "PrinterCallback":
                self.remove_callback(callback)
            if type(callback).__name__ == "TensorBoardCallback":
                callback.logging_dir = callback.logging_dir or str(tensorboard)
        self._masks = masks
        self.add_callback(masks)
        self._progress = Progress(reporter, log, progress)
        self.add_callback(self._progress)
        self._best = KeepBest(Path(self.args.output_dir) / "best", self._save_to)
        self.add_callback(self._best)

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator; a sharded model has the decoder blocks for units."""
        super().create_accelerator_and_postprocess()
        if self.args.fp16 and self.accelerator.scaler is None:
            # accelerate leaves it out on CPUs, where small gradients vanish as well.
            self.accelerator.scaler = torch.amp.GradScaler(self.args.device.type)
            self.accelerator.native_amp = True
        self.is_fsdp_enabled = sharding.shard_by_blocks(self.accelerator, self._blocks)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create AdamW; with a ratio for B these form a group apart (LoRA+, arXiv:2402.12354)."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self._b_ratio == 1 or not is_new:
            return optimizer
        assert self.model is not None
        of_b = {id(p) for name, p in self.model.named_parameters() if name.endswith(".B")}
        for group in list(optimizer.param_groups):
            faster = [p for p in group["params"] if id(p) in of_b]
            group["params"] = [p for p in group["params"] if id(p) not in of_b]
            if faster:
                rate = group["lr"] * self._b_ratio
                optimizer.add_param_group({**group, "params": faster, "lr": rate})
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        """Create the schedule of ``training.schedule``, in which the first step trains, too."""
        if self.lr_scheduler is None:  # type: ignore[has-type]
            factor = partial(
                rate_factor,
                str(self.args.lr_scheduler_type.value),
                warmup=int(self.args.warmup_steps),
                steps=num_training_steps,
            )
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        scheduler: LambdaLR = self.lr_scheduler
        return scheduler

    def train_to_end(self) -> None:
        """Validate and train, from the newest whole checkpoint on if there is one.

        Raises:
            NumericalError: the loss is NaN or infinite.
            CheckFailed: a zero was lost, or the base has changed.
            WorkspaceError: the checkpoint is of another number of processes.
        """
        folder = Path(self.args.output_dir)
        newest = processes.decide(lambda: newest_checkpoint(folder, self._reporter))
        if newest is not None and self._is_last(newest):
            return
        self.args.eval_on_start = newest is None
        try:
            with self._progress.bars:  # an error takes the bar off the screen before it is shown
                self.train(resume_from_checkpoint=None if newest is None else str(newest))
        except NumericalError as error:
            raise NumericalError(f"{error}{self._what_is_left()}") from None

    def _is_last(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is of the last step; if so, be where the Trainer then would be.

        It would begin the next step, and train it, before it looks how many there are to be.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return False
        self.state = state
        self._progress.write(state)
        return True

    def loss_before(self) -> float:
        """Return the validation loss of the pruned model as it came."""
        return float(next(e["eval_loss"] for e in self.state.log_history if "eval_loss" in e))

    def mean_loss(self) -> float:
        """Return the mean loss of all steps, those before a kill included."""
        total, last = 0.0, 0
        for entry in self.state.log_history:
            if "loss" in entry:  # the mean since the line before
                total += entry["loss"] * (entry["step"] - last)
                last = entry["step"]
        return total / max(last, 1)

    def load_best(self) -> tuple[int, float]:
        """Put the best adapter so far into the model; return its step and its validation loss.

        Step 0 is the pruned model as it came.
        """
        assert self.model is not None
        processes.wait_for_all()  # the main one may still be writing it
        load_adapter(self.model, self._best.folder)
        best = self._best.best()
        return int(best["step"]), float(best["loss"])

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *more: Any) -> Tensor:
        """Train on one batch and count its tokens, without waiting for the device."""
        mask = inputs.get("attention_mask")  # packed rows have none, and hardly any padding
        self._tokens += inputs["input_ids"].numel() if mask is None else mask.sum()
        loss: Tensor = super().training_step(model, inputs, *more)
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Return the batches of one step, and how many predictions count in those of all processes.

        Counted here, for the Trainer counts only where the model asks for it.
        """
        batches = list(islice(epoch_iterator, num_batches))
        count = torch.zeros((), dtype=torch.int64, device=device)
        for batch in batches:
            count += count_predicted(batch).sum()
        processes.add_up([count])
        return batches, count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return what a batch adds to the loss of its step, the mean over all that it predicts.

        Part of it may come from the dense model's predictions.
        """
        outputs = model_outputs(model, inputs)
        count = num_items_in_batch / processes.count()  # gradients are averaged over them
        loss = causal_loss(model, outputs, inputs, count)
        if self._distillation is not None:
            loss = self._distillation.blended(loss, outputs.logits, inputs, count)
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(
        self, dataloader: Iterable[dict[str, Any]], description: str, *_: Any, **__: Any
    ) -> EvalLoopOutput:
        """Return the mean loss over all that is predicted, whatever batches the rows come in.

        The Trainer's own is a mean of the means of batches.
        """
        assert self.model is not None
        self.model.eval()
        nats, count, rows = 0.0, 0, 0
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            found = row_losses(self.model, inputs), count_predicted(inputs)
            # Those of all processes, without the rows that only fill up the last batch.
            sums, counts = self.accelerator.gather_for_metrics(found)
            nats += float(sums.sum())
            count += int(counts.sum())
            rows += len(sums)
        return EvalLoopOutput(None, None, {"eval_loss": nats / max(count, 1)}, rows)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; with each loss also speed, memory, and the masks' digest if they were checked."""
        if "loss" in logs:
            logs |= self._measured()
            if digest := self._masks.digest_at(self.state.global_step):
                logs["mask_digest"] = digest  # type: ignore[assignment]
        super().log(logs, start_time)

    def _measured(self) -> dict[str, float]:
        """Return tokens a second of all processes since the last time, and this one's memory."""
        now = time.monotonic()
        tokens = sum(processes.collect(int(self._tokens)))
        speed = tokens / max(now - self._logged_at, 1e-9)
        self._tokens.zero_()
        self._logged_at = now
        if self.args.device.type == "cuda":
            return {"tokens_per_second": speed, "gpu_peak_bytes": memory.gpu_peak()}
        return {"tokens_per_second": speed, "process_peak_bytes": memory.process_peak()}

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        """Validate, which takes no time from the speed of training."""
        began = time.monotonic()
        metrics: dict[str, float] = super().evaluate(*arguments, **keywords)
        self._logged_at += time.monotonic() - began
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter, which is all that trains."""
        self._save_to(Path(output_dir or self.args.output_dir))

    def _save_to(self, folder: Path) -> None:
        assert self.model is not None
        save_adapter(self.model, folder, self.description)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        processes.wait_for_all()  # each writes its own random state
        if self.args.should_save:
            mark_complete(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # The Trainer's way would save the base too.
        state = sharding.whole_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with damage_named(checkpoint):
            if not self.is_fsdp_enabled or checkpoint is None:
                super()._load_optimizer_and_scheduler(checkpoint)
                return
            state = torch.load(Path(checkpoint) / "optimizer.pt", weights_only=True)
            sharding.load_whole_state(self.optimizer, state)
            schedule = torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True)
            self.lr_scheduler.load_state_dict(schedule)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with damage_named(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        assert self.model is not None
        load_adapter(self.model, Path(resume_from_checkpoint))

    def _what_is_left(self) -> str:
        """Return what there is to go on with after a failure; empty if nothing better than zero."""
        best = self._best.best()
        if not best["step"]:
            return ""
        return (
            f". The best adapter so far, of step {best['step']}, is in {self._best.folder}. "
            "The same command resumes from the last checkpoint"
        )
