"""spp finetune --find-lr: short finetunes that tell which learning rate, schedule and rank suit."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spp_cli.atomic_files import UNFINISHED
from spp_cli.config import FinetuneConfig, SppConfig
from spp_cli.errors import MissingExtraError, NumericalError
from spp_cli.fingerprint import write_json
from spp_cli.progress import Reporter, Silent, Task
from spp_cli.reporting.search_plot import draw_trials
from spp_cli.stages import finetune
from spp_cli.stages.stage import Sources

__all__ = ["Trial", "climb", "search"]

DOCUMENT, PLOT = "find-lr.json", "find-lr.png"
_STEPS = 30  # of one trial; a longer training wants the same rate or up to half of it
_FURTHEST = 8  # trials of rates at most


@dataclass(frozen=True)
class Trial:
    """A setting, and the validation loss in nats that a short finetune with it ends at."""

    learning_rate: float
    schedule: str
    r: int | None
    loss: float = math.inf


def search(config: SppConfig, sources: Sources, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """Return the trials and the best of them; also left in ``folder``, with a plot.

    First the rate: from the configured one uphill in steps of 10^(1/3), as long as the loss falls.
    Then, with the best rate, the other schedules, and half and twice the adapter's r.
    """
    settings = config.finetune
    first = Trial(_rounded(settings.learning_rate), settings.schedule, _rank(settings))
    with reporter.task("find-lr", 6 + 1 + 2 * (first.r is not None), "trials") as progress:

        def attempt(trial: Trial) -> Trial:
            return _attempt(config, sources, trial, folder, progress)

        trials = climb(first, attempt)
        best = min(trials, key=_loss)
        for change in _others(best):
            trials.append(attempt(replace(best, **change)))
    found = [asdict(trial) for trial in sorted(trials, key=_loss)]
    if not math.isfinite(found[0]["loss"]):
        raise NumericalError(
            "finetune: every trial ended in a loss of NaN or infinity, the lowest rate "
            f"{min(trial.learning_rate for trial in trials):g}. Set a far lower --learning-rate"
        )
    document = {"steps": _steps(settings), "trials": found, "best": found[0]}
    write_json(folder / DOCUMENT, document)
    try:
        draw_trials([trial for trial in found if math.isfinite(trial["loss"])], folder / PLOT)
        reporter.say(f"plot: {folder / PLOT}")
    except MissingExtraError as error:
        reporter.say(str(error))
    return document


def climb(first: Trial, attempt: Callable[[Trial], Trial]) -> list[Trial]:
    """Return the trials of rates from ``first`` on, up or else down, until the loss rises."""
    trials = [attempt(first)]
    for step in (1, -1):
        if min(trials, key=_loss) is not trials[0]:
            break  # it fell on the way up
        place = 0
        while len(trials) < _FURTHEST:
            place += step
            trial = attempt(replace(first, learning_rate=_moved(first.learning_rate, place)))
            lowest = min(map(_loss, trials))
            trials.append(trial)
            still_nowhere = step < 0 and lowest == math.inf
            if not (trial.loss < lowest or still_nowhere):
                break
    return trials


def _others(best: Trial) -> Iterable[dict[str, Any]]:
    """Yield what else is worth a trial at the best rate."""
    yield {"schedule": "cosine" if best.schedule == "linear" else "linear"}
    if best.r is not None:
        yield {"r": best.r * 2}
        if best.r > 1:
            yield {"r": best.r // 2}


def _attempt(
    config: SppConfig, sources: Sources, trial: Trial, folder: Path, progress: Task
) -> Trial:
    settings = config.finetune
    adapter = settings.adapter
    if trial.r is not None:
        adapter = adapter.model_copy(update={"r": trial.r})
    short = settings.model_copy(
        update={
            "adapter": adapter,
            "learning_rate": trial.learning_rate,
            "schedule": trial.schedule,
            "max_steps": _steps(settings),
            "evaluate_every": _steps(settings),  # at the end, and before the first
            "checkpoint_every": None,
            "report_to": (),
        }
    )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".find-lr.", suffix=UNFINISHED) as target:
        try:
            result = finetune.run(
                config.model_copy(update={"finetune": short}), sources, Path(target), Silent()
            )
            loss = float(result.metrics["validation_loss_after"])
        except NumericalError:
            loss = math.inf
    progress.advance(1, f"{trial.learning_rate:g}: {loss:.3f}")
    return replace(trial, loss=loss)


def _steps(settings: FinetuneConfig) -> int:
    return min(_STEPS, settings.max_steps or _STEPS)


def _rank(settings: FinetuneConfig) -> int | None:
    rank: int | None = getattr(settings.adapter, "r", None)
    return rank


def _loss(trial: Trial) -> float:
    return trial.loss


def _moved(rate: float, places: int) -> float:
    return _rounded(rate * 10 ** (places / 3))


def _rounded(rate: float) -> float:
    """Return ``rate`` with two digits, as one would write it."""
    return float(f"{rate:.1e}")
