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

from spp_cli import processes
from spp_cli.errors import NumericalError
from spp_cli.fingerprint import write_json, write_text
from spp_cli.progress import Reporter, Task
from spp_cli.reading import read_json
from spp_cli.training.mask_check import GENTLER, MaskCheck

__all__ = ["REPRODUCIBLE", "CheckMasks", "KeepBest", "Progress"]

# What a line of the log says of the training, the same whatever happened on the way ...
REPRODUCIBLE = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm", "mask_digest")
# ... and what it says of the machine.
_MEASURED = ("tokens_per_second", "gpu_peak_bytes", "process_peak_bytes")


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
            found: dict[str, Any] = read_json(self.folder / "best.json")
            return found
        except (OSError, ValueError):
            return {"loss": math.inf, "step": None}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        loss = metrics["eval_loss"]
        if not processes.decide(lambda: loss < self.best()["loss"]):
            return
        unfinished = self.folder.with_suffix(".writing")
        if processes.is_main():
            shutil.rmtree(unfinished, ignore_errors=True)
        self._save(unfinished)
        if processes.is_main():
            record = {"loss": loss, "step": state.global_step}
            (unfinished / "best.json").write_text(json.dumps(record))
            shutil.rmtree(self.folder, ignore_errors=True)
            unfinished.rename(self.folder)


class CheckMasks(TrainerCallback):
    """Checks every so many steps that no zero was lost; ``digest_at`` tells where it was."""

    def __init__(self, check: MaskCheck, every: int) -> None:
        self._check = check
        self._every = every
        self._last_step = 0

    def digest_at(self, step: int) -> str | None:
        """Return the digest of the masks if they were checked after this step."""
        return self._check.digest if step == self._last_step and step else None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._every == 0:
            self._check.run(state.global_step)
            self._last_step = state.global_step
            control.should_log = True


class Progress(TrainerCallback):
    """Shows steps and losses while they come, writes them down, and stops at a loss of NaN.

    ``log`` gets one JSON line for each loss, ``progress`` how many steps are done. Lines from
    before a kill come back with the checkpoint: whatever happened on the way, the same training
    leaves the same log, but for its speed and memory.
    """

    def __init__(self, reporter: Reporter, log: Path, progress: Path) -> None:
        self.bars = ExitStack()  # closed by whoever trains, after an error too
        self._reporter = reporter
        self._log = log
        self._progress = progress
        self._task: Task | None = None
        self._details: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        bar = self._reporter.task("finetune", state.max_steps, "steps")
        self._task = self.bars.enter_context(bar)
        self._task.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self._task is not None
        shown = (self._details.get(kind) for kind in ("training", "validation"))
        self._task.advance(1, ", ".join(filter(None, shown)))
        if control.should_save:
            control.should_log = True  # a kill after the checkpoint must not lose a loss

    def write(self, state: Any) -> None:
        """Write down the losses so far, and how many steps are done."""
        if processes.is_main():
            done = {"done": state.global_step, "total": state.max_steps, "unit": "steps"}
            write_json(self._progress, done)
            write_text(self._log, _lines(state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        self.write(state)
        scaled = getattr(args, "fp16", False)  # whose gradients overflow now and then, by design
        for name, label in (
            ("loss", "loss"),
            ("eval_loss", "validation loss"),
            ("grad_norm", "norm of the gradient"),
        ):
            if name in logs and not (math.isfinite(logs[name]) or (name == "grad_norm" and scaled)):
                raise NumericalError(_not_a_number(label, logs[name], state.global_step))
        self._details |= _details(logs)


def _details(logs: dict[str, Any]) -> dict[str, str]:
    """Return what is to stand beside the bar: "loss 2.345, lr 3.8e-03, 1,234 tokens/s"."""
    if "eval_loss" in logs:
        return {"validation": f"validation {logs['eval_loss']:.3f}"}
    if "loss" not in logs:
        return {}
    speed = f"{logs['tokens_per_second']:,.0f} tokens/s"
    return {"training": f"loss {logs['loss']:.3f}, lr {logs['learning_rate']:.1e}, {speed}"}


def _not_a_number(label: str, value: float, step: int) -> str:
    if step == 0:
        return (
            f"finetune: the {label} of the pruned model itself is {value}. "
            "Try finetune.precision: float32, or prune less"
        )
    return f"finetune: {label} is {value} at step {step}. {GENTLER}"


def _lines(history: Iterable[dict[str, Any]]) -> str:
    keys = (*REPRODUCIBLE, *_MEASURED)
    losses = (entry for entry in history if "loss" in entry or "eval_loss" in entry)
    return "".join(
        json.dumps({key: entry[key] for key in keys if key in entry}) + "\n" for entry in losses
    )
