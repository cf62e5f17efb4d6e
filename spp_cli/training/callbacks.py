"""What happens beside the training steps: show progress, watch the losses, keep the best."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from spp_cli.errors import NumericalError
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

    def best(self) -> dict[str, Any]:
        """Return ``loss`` and ``step`` of the adapter in the folder; a loss of infinity if none."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "best.json").read_text())
            return found
        except (OSError, ValueError):
            return {"loss": math.inf, "step": None}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        loss = metrics["eval_loss"]
        if state.is_world_process_zero and loss < self.best()["loss"]:
            unfinished = self.folder.with_suffix(".writing")
            shutil.rmtree(unfinished, ignore_errors=True)
            self._save(unfinished)
            record = {"loss": loss, "step": state.global_step}
            (unfinished / "best.json").write_text(json.dumps(record))
            shutil.rmtree(self.folder, ignore_errors=True)
            unfinished.rename(self.folder)


class Progress(TrainerCallback):
    """Shows steps and losses while they come, writes them down, and stops at a loss of NaN."""

    def __init__(self, reporter: Reporter, log: Path) -> None:
        self._reporter = reporter
        self._log = log
        self._context: Any = None
        self._task: Task | None = None
        self._detail = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._context = self._reporter.task("finetune", state.max_steps, "steps")
        self._task = self._context.__enter__()
        self._task.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._task is not None:
            self._task.advance(1, self._detail)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, float)}
        with self._log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": state.global_step, **numbers}) + "\n")
        for name in ("loss", "eval_loss"):
            if name in numbers:
                if not math.isfinite(numbers[name]):
                    raise NumericalError(
                        f"finetune: {name} is {numbers[name]} at step {state.global_step}. "
                        "Lower finetune.learning_rate, or raise warmup_ratio"
                    )
                label = "loss" if name == "loss" else "validation loss"
                self._detail = f"{label} {numbers[name]:.3f}"

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = self._task = None
