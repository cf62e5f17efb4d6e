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
from typing import Any, Literal

import datasets
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm  # type: ignore[import-untyped]

from spp_cli.data.conversations import TEMPLATE_ERRORS
from spp_cli.errors import DataError, NumericalError
from spp_cli.evaluation.batches import within_memory
from spp_cli.progress import Reporter, Task

__all__ = ["ReportingScorer", "quiet_harness", "replaced"]

TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"


class ReportingScorer(HFLM):
    """lm-evaluation-harness's scorer of transformers models, with a reporter instead of tqdm.

    ``batch_size`` "auto" is found for each task by itself, and halved where memory runs out: the
    harness's own way tries one batch, and gives up where a later one needs more.
    """

    def __init__(
        self, model: Any, tokenizer: Any, batch_size: int | Literal["auto"], reporter: Reporter
    ) -> None:
        tokenizer = copy.deepcopy(tokenizer)  # the harness gives it a padding token
        vocabulary = model.config.get_text_config().vocab_size
        if (tokenizer.pad_token_id or 0) >= vocabulary:  # it is masked, but looked up all the same
            tokenizer.pad_token = tokenizer.eos_token
        # This warning, of transformers, says less than the one below.
        tokenizer.deprecation_warnings[TOO_LONG] = True
        super().__init__(
            pretrained=model, tokenizer=tokenizer, backend="causal", softmax_dtype="float32"
        )
        self.reporter = reporter
        self.title = ""  # name of the task whose progress is shown
        self._asked_batch_size = batch_size
        self._is_told = False  # that texts are cut
        self._vocabulary = vocabulary
        self._instances: Sequence[Any] = ()  # what is being answered

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the conversation as the tokenizer's template writes it."""
        try:
            return str(super().apply_chat_template(chat_history, add_generation_prompt))
        except TEMPLATE_ERRORS as error:
            asked = next(
                (turn["content"] for turn in chat_history[::-1] if turn["role"] == "user"), ""
            )
            raise DataError(
                f"task {self.title}, the question {_beginning(asked)}: refused by the chat "
                f"template: {error}"
            ) from error

    def tok_encode(self, string: str, *arguments: Any, **options: Any) -> list[int]:
        """Return the tokens of a text, all of which the model has an embedding for."""
        ids: list[int] = super().tok_encode(string, *arguments, **options)
        self._check_vocabulary(string, max(ids, default=0))
        return ids

    def tok_batch_encode(self, strings: list[str], *arguments: Any, **options: Any) -> Any:
        """Return the tokens of texts and their mask, (texts, tokens) each."""
        ids, mask = super().tok_batch_encode(strings, *arguments, **options)
        for string, row in zip(strings, ids, strict=True):
            self._check_vocabulary(string, int(row.max()) if len(row) else 0)
        return ids, mask

    def _check_vocabulary(self, text: str, largest: int) -> None:
        if largest >= self._vocabulary:
            raise DataError(
                f"task {self.title}, {self._question(text)}: {self.tokenizer.decode([largest])!r} "
                f"is token {largest}, and the model has embeddings for {self._vocabulary}. "
                "Give the tokenizer that belongs to the model, or resize its embeddings"
            )

    def _question(self, text: str) -> str:
        """Return the number of the question, from 1, that ``text`` is of, or how it begins."""
        for instance in self._instances:
            asked = [part for part in instance.args if isinstance(part, str)]
            if text in (*asked, "".join(asked)):
                return f"question {instance.doc_id + 1}"
        return f"the text {_beginning(text)}"

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        """Return (log-likelihood in nats, whether greedy gives it) for each (context, answer)."""
        answers = self._answers(super().loglikelihood, requests)
        self._refuse_nan(value for value, _ in answers)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        """Return the log-likelihood in nats of each whole text."""
        answers = self._answers(super().loglikelihood_rolling, requests)
        self._refuse_nan(answers)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        """Return what the model writes after each prompt."""
        for request in requests:
            asked = normalize_gen_kwargs(dict(request.args[1]), self.max_gen_toks)["max_gen_toks"]
            if asked >= self.max_length:
                raise DataError(
                    f"task {self.title} lets the model write {asked} tokens, and the context of "
                    f"this model is {self.max_length}. Leave the task out, or set max_gen_toks "
                    "below that in generation_kwargs of its file"
                )
        return self._answers(super().generate_until, requests)

    def _answers(self, method: Callable[..., list[Any]], requests: list[Any]) -> list[Any]:
        """Return what a method of the harness gives, in batches that memory holds."""
        with self.reporter.task(self.title, len(requests), "requests") as task:
            answered, self._instances = _Answered(task), requests

            def measure(batch_size: int) -> list[Any]:
                self.batch_size_per_gpu = batch_size
                answered.begin()
                return method(requests, disable_tqdm=True)

            self.set_cache_hook(answered)
            try:
                return within_memory(measure, self._asked_batch_size, self.device)
            finally:
                self.set_cache_hook(CacheHook(None))

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
        if cut and not self._is_told:
            self._is_told = True
            self.reporter.warn(
                f"{self.title}: {cut} of {len(requests)} texts are longer than the model's context "
                f"of {self.max_length} tokens and lose their beginning"
            )
        return super()._loglikelihood_tokens(requests, **options)

    def _refuse_nan(self, values: Iterator[float] | list[float]) -> None:
        if any(math.isnan(value) for value in values):
            raise NumericalError(
                f"task {self.title}: the model computes NaN. "
                "Try --device cpu, which computes in float32, or check its weights"
            )


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    return f"{line[:60]}…" if len(line) > 60 else repr(line)


class _Answered(CacheHook):
    """Counts answers: the harness hands each one to its hook for caches as soon as it is there."""

    def __init__(self, task: Task) -> None:
        super().__init__(None)
        self._task = task
        self._shown = self._found = 0

    def begin(self) -> None:
        """Count from the first answer again; what was shown stays shown."""
        self._found = 0

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._found += 1
        if self._found > self._shown:
            self._shown += 1
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
