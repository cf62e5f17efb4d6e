"""Accuracy without training: tasks of lm-evaluation-harness on a model that is in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from spp_cli.config import EvalConfig
from spp_cli.data.stdlib import missing_modules
from spp_cli.errors import ConfigError, MissingExtraError
from spp_cli.evaluation import next_line
from spp_cli.progress import Reporter

__all__ = [
    "ZEROSHOT",
    "TaskResult",
    "check_tasks",
    "evaluate_tasks",
    "expand_tasks",
    "harness_version",
    "zeroshot_mean",
]

ZEROSHOT = (
    "boolq",
    "rte",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
)


@dataclass(frozen=True)
class TaskResult:
    """What a model scored in one task, or in a group of tasks."""

    metrics: dict[str, float]  # acc, acc_stderr, acc_norm, ...: whatever the task measures
    samples: int  # questions answered
    version: str  # of the task; scores of different versions cannot be compared
    num_fewshot: int | None  # solved examples before each question; None: differs in a group


def expand_tasks(names: Sequence[str]) -> list[str]:
    """Return the harness's names of tasks, each once: "zeroshot" becomes the suite of seven.

    Raises:
        ConfigError: "perplexity", which is measured on a text and not by the harness.
    """
    if "perplexity" in names:
        raise ConfigError("perplexity is not a task of lm-evaluation-harness; leave it out here")
    suites = {"zeroshot": ZEROSHOT}
    return list(dict.fromkeys(task for name in names for task in suites.get(name, (name,))))


def zeroshot_mean(results: Mapping[str, TaskResult]) -> float | None:
    """Return the plain mean of acc over the seven tasks; None unless all of them are there."""
    if not set(ZEROSHOT) <= set(results):
        return None
    return sum(results[name].metrics["acc"] for name in ZEROSHOT) / len(ZEROSHOT)


def harness_version() -> str:
    """Return the version of lm-evaluation-harness.

    Raises:
        MissingExtraError: it is not installed.
    """
    _require_harness()
    return metadata.version("lm_eval")


def check_tasks(names: Sequence[str], config: EvalConfig) -> None:
    """Find every task, before a model is loaded; their data are not read yet.

    Raises:
        ConfigError: an unknown task, with the nearest name, or ``config.task_folder`` is none.
        MissingExtraError: lm-evaluation-harness is not installed.
    """
    _require_harness()
    from spp_cli.evaluation.tasks import find_tasks

    find_tasks(expand_tasks(names), config.task_folder)


def evaluate_tasks(
    model: Any, tokenizer: Any, tasks: Sequence[str], config: EvalConfig, reporter: Reporter
) -> dict[str, TaskResult]:
    """Return what ``model`` scores in each task, in the order asked for.

    A group of tasks, such as mmlu, gives its own result, if it has one, and those of its members.
    The log-likelihoods are float32 whatever the type of the model: in bfloat16 many would be equal.

    Args:
        model: a causal transformers model, on the device where it shall run.
        tokenizer: the tokenizer of the model; left as it is.
        tasks: names; "zeroshot" is the suite of seven, "next-line" the embedded task.

    Raises:
        ConfigError: an unknown task, or one that cannot run here.
        DataError: the data set of a task cannot be read; says which, and how to supply it.
        MissingExtraError: lm-evaluation-harness is not installed.
        NumericalError: the model computes NaN.
    """
    _require_harness()
    from lm_eval.evaluator import evaluate

    from spp_cli.evaluation.scorer import ReportingScorer, quiet_harness
    from spp_cli.evaluation.tasks import find_tasks, load_task

    names = expand_tasks(tasks)
    index = find_tasks(names, config.task_folder)
    if next_line.NAME in names and (missing := missing_modules("test")):
        reporter.warn(f"{next_line.NAME}: this Python lacks {', '.join(missing)}; scores differ")
    results: dict[str, TaskResult] = {}
    training = model.training
    try:
        with quiet_harness():
            # All are loaded first: data that cannot be read shall stop a run before its hours.
            loaded = {name: load_task(name, index, config) for name in names}
            scorer = ReportingScorer(model, tokenizer, config.batch_size, reporter)
            for name, task in loaded.items():
                scorer.title = name
                found = evaluate(
                    scorer, task, limit=config.limit, bootstrap_iters=100, log_samples=False
                )
                results |= _results(found)
    finally:
        model.train(training)
    return results


def _results(found: Mapping[str, Any]) -> dict[str, TaskResult]:
    """Return the numbers of the harness's report, without the filter "none" in their names."""
    results = {}
    for name, report in found["results"].items():
        metrics = {
            key.removesuffix(",none"): float(value)
            for key, value in report.items()
            if "," in key and isinstance(value, int | float)
        }
        if metrics:
            counts = report.get("sample_count", {"": report.get("sample_len", 0)})
            results[name] = TaskResult(
                metrics,
                samples=max(counts.values()),
                version=str(found["versions"].get(name)),
                num_fewshot=found["n-shot"].get(name),
            )
    return results


def _require_harness() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        if error.name != "lm_eval":
            raise
        raise MissingExtraError("lm-eval", "eval", "evaluation on tasks") from error
