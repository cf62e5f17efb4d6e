"""What happens beside the training steps: show progress, watch the losses, keep the best."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from spp_cli.errors import NumericalError
from spp_cli.fingerprint import write_json, write_text
from spp_cli.progress import Reporter, Task

__all__ = ["KeepBest", "Progress"]


class KeepBest(TrainerCallback):
    """Saves the adapter whenever its validation loss is the lowest so far, in ``folder``.

    The first validation is that of the pruned model itself, so that training never makes it worse.
    The Trainer's own way of keeping the best forbids checkpoints between validations.
    """

    def __init__(self, folder: Path, save: Callable[[Path], None]) -> None:
        self.folder = folder
        self._save = save
        self._has_ended = False

    def best(self) -> dict[str, Any]:
        """Return ``loss`` and ``step`` of the adapter in the folder; a loss of infinity if none."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "best.json").read_text())
            return found
        except (OSError, ValueError):
            return {"loss": math.inf, "step": None}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        loss = metrics["eval_loss"]
        if self._has_ended:
            return  # that is the best one itself, measured again
        if state.is_world_process_zero and loss < self.best()["loss"]:
            unfinished = self.folder.with_suffix(".writing")
            shutil.rmtree(unfinished, ignore_errors=True)
            self._save(unfinished)
            record = {"loss": loss, "step": state.global_step}
            (unfinished / "best.json").write_text(json.dumps(record))
            shutil.rmtree(self.folder, ignore_errors=True)
            unfinished.rename(self.folder)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._has_ended = True


class Progress(TrainerCallback):
    """Shows steps and losses while they come, writes them down, and stops at a loss of NaN.

    ``log`` gets one JSON line for each loss, ``progress`` how many steps are done. Lines have no
    times in them, and those from before a kill come back with the checkpoint: whatever happened on
    the way, the same training leaves the same log.
    """

    def __init__(self, reporter: Reporter, log: Path, progress: Path) -> None:
        self.bars = ExitStack()  # closed by whoever trains, after an error too
        self._reporter = reporter
        self._log = log
        self._progress = progress
        self._task: Task | None = None
        self._before: list[dict[str, Any]] = []  # training begins with an empty history
        self._has_ended = False
        self._detail = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        bar = self._reporter.task("finetune", state.max_steps, "steps")
        self._task = self.bars.enter_context(bar)
        self._task.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self._task is not None
        self._task.advance(1, self._detail)
        if control.should_save:
            control.should_log = True  # a kill after the checkpoint must not lose a loss

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        if self._has_ended:
            return  # the last validation is that of the best step, not of the last
        if self._task is None:
            self._before = list(state.log_history)
        else:
            done = {"done": state.global_step, "total": state.max_steps, "unit": "steps"}
            write_json(self._progress, done)
            write_text(self._log, _lines([*self._before, *state.log_history]))
        for name, label in (("loss", "loss"), ("eval_loss", "validation loss")):
            if name in logs:
                if not math.isfinite(logs[name]):
                    raise NumericalError(_not_a_loss(label, logs[name], state.global_step))
                self._detail = f"{label} {logs[name]:.3f}"

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._has_ended = True


def _not_a_loss(label: str, loss: float, step: int) -> str:
    if step == 0:
        return (
            f"finetune: the {label} of the pruned model itself is {loss}. "
            "Try finetune.precision: float32, or prune less"
        )
    return (
        f"finetune: {label} is {loss} at step {step}. "
        "Lower finetune.learning_rate, or raise finetune.warmup_ratio"
    )


def _lines(history: Iterable[dict[str, Any]]) -> str:
    keys = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
    losses = (entry for entry in history if "loss" in entry or "eval_loss" in entry)
    return "".join(
        json.dumps({key: entry[key] for key in keys if key in entry}) + "\n" for entry in losses
    )
