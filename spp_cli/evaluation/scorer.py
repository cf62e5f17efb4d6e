"""The harness's own scorer around a model in memory, showing its progress where ours is shown."""

from __future__ import annotations

import copy
import importlib
import logging
import math
import random
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import datasets
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm  # type: ignore[import-untyped]

from spp_cli.errors import DataError, NumericalError
from spp_cli.progress import Reporter, Task

__all__ = ["ReportingScorer", "quiet_harness", "replaced"]

TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"


class ReportingScorer(HFLM):
    """lm-evaluation-harness's scorer of transformers models, with a reporter instead of tqdm."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, reporter: Reporter) -> None:
        tokenizer = copy.deepcopy(tokenizer)  # the harness gives it a padding token
        # This warning, of transformers, says less than the one below.
        tokenizer.deprecation_warnings[TOO_LONG] = True
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            softmax_dtype="float32",
        )
        self.reporter = reporter
        self.title = ""  # name of the task whose progress is shown

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        """Return (log-likelihood in nats, whether greedy gives it) for each (context, answer)."""
        with self._progress(len(requests)):
            answers = super().loglikelihood(requests, disable_tqdm=True)
        self._refuse_nan(value for value, _ in answers)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        """Return the log-likelihood in nats of each whole text."""
        with self._progress(len(requests)):
            answers = super().loglikelihood_rolling(requests, disable_tqdm=True)
        self._refuse_nan(answers)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        """Return what the model writes after each prompt."""
        with self._progress(len(requests)):
            return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **options: Any) -> list[Any]:
        """Score token ids; say what the model's context is too short for."""
        longest = max((len(answer) for _, _, answer in requests), default=0)
        if longest > self.max_length:
            raise DataError(
                f"task {self.title} has an answer of {longest} tokens; the context of this model "
                f"is {self.max_length}. Leave the task out, or take a model with a longer context"
            )
        room = self.max_length + 1  # the last token is predicted and never read
        cut = sum(len(context) + len(answer) > room for _, context, answer in requests)
        if cut:
            self.reporter.warn(
                f"{self.title}: {cut} of {len(requests)} texts are longer than the model's context "
                f"of {self.max_length} tokens and lose their beginning"
            )
        return super()._loglikelihood_tokens(requests, **options)

    def _refuse_nan(self, values: Iterator[float] | list[float]) -> None:
        if any(math.isnan(value) for value in values):
            raise NumericalError(
                f"task {self.title}: the model computes NaN. "
                "Try --dtype float32, or check its weights"
            )

    @contextmanager
    def _progress(self, requests: int) -> Iterator[None]:
        with self.reporter.task(self.title, requests, "requests") as task:
            self.set_cache_hook(_Answered(task))
            try:
                yield
            finally:
                self.set_cache_hook(CacheHook(None))


class _Answered(CacheHook):
    """Counts answers: the harness hands each one to its hook for caches as soon as it is there."""

    def __init__(self, task: Task) -> None:
        super().__init__(None)
        self._task = task

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._task.advance(1)


class _NoBar(tqdm):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Keep the harness from writing to the terminal: its log, bars, bootstrap and warnings."""
    log = logging.getLogger("lm_eval")
    level, bars = log.level, not datasets.are_progress_bars_disabled()
    log.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        with ExitStack() as stack:
            for module in ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface"):
                stack.enter_context(replaced(importlib.import_module(module), "tqdm", _NoBar))
            metrics = importlib.import_module("lm_eval.api.metrics")
            stack.enter_context(replaced(metrics, "bootstrap_stderr", _bootstrap_stderr))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"(datasets|lm_eval|sklearn)\b")
            yield
    finally:
        log.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give ``owner.name`` another value while the context lasts."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _bootstrap_stderr(statistic: Callable[[Any], float], values: Any, iters: int) -> float:
    """Return the standard error of what has no formula; the harness's own starts processes."""
    rng = random.Random(0)
    return statistics.stdev(statistic(rng.choices(values, k=len(values))) for _ in range(iters))
