"""Accuracy without training: tasks of lm-evaluation-harness on a model that is in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from spp_cli.config import EvalConfig
from spp_cli.data.stdlib import missing_modules
from spp_cli.errors import ConfigError, MissingExtraError
from spp_cli.evaluation import next_line
from spp_cli.progress import Reporter

if TYPE_CHECKING:
    from spp_cli.evaluation.tasks import LoadedTask

__all__ = [
    "ZEROSHOT",
    "TaskResult",
    "check_chat_template",
    "evaluate_task",
    "expand_tasks",
    "harness_version",
    "load_tasks",
    "require_harness",
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
    chat_template: bool  # whether they were put to the model in its chat template
    data: str  # first 16 digits of the digest of the questions and the examples
    harness: str  # version of lm-evaluation-harness
    group: str | None = None  # of which it is a member, if that one was asked for
    higher_is_better: dict[str, bool] = field(default_factory=dict)  # by metric


def expand_tasks(names: Sequence[str]) -> list[str]:
    """Return the harness's names of tasks, each once: "zeroshot" becomes the suite of seven.

    Raises:
        ConfigError: "perplexity", which is measured on a text and not by the harness.
    """
    if "perplexity" in names:
        raise ConfigError("perplexity is not a task of lm-evaluation-harness; leave it out here")
    suites = {"zeroshot": ZEROSHOT}
    return list(dict.fromkeys(task for name in names for task in suites.get(name, (name,))))


def zeroshot_mean(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float] | None:
    """Return the plain mean of acc over the seven tasks, and its error; None if one is missing.

    ``metrics`` are those of each task by its name. The tasks' errors are independent.
    """
    if not set(ZEROSHOT) <= set(metrics):
        return None
    number = len(ZEROSHOT)
    errors = (metrics[name].get("acc_stderr", math.nan) for name in ZEROSHOT)
    return {
        "acc": sum(metrics[name]["acc"] for name in ZEROSHOT) / number,
        "acc_stderr": math.hypot(*errors) / number,
    }


def harness_version() -> str:
    """Return the version of lm-evaluation-harness.

    Raises:
        MissingExtraError: it is not installed.
    """
    require_harness()
    return metadata.version("lm_eval")


def load_tasks(names: Sequence[str], config: EvalConfig) -> dict[str, LoadedTask]:
    """Return the tasks with their data by name, suites as what they are made of.

    All are loaded at once: data that cannot be read shall stop a run before its hours.

    Args:
        names: of tasks and groups; "zeroshot" is the suite of seven, "next-line" the embedded task.

    Raises:
        ConfigError: an unknown task, with the nearest name, or one that cannot run here.
        DataError: the data set of a task cannot be read; says which, and how to supply it.
        MissingExtraError: lm-evaluation-harness is not installed.
    """
    require_harness()
    from spp_cli.evaluation.scorer import quiet_harness
    from spp_cli.evaluation.tasks import find_tasks, load_task

    expanded = expand_tasks(names)
    index = find_tasks(expanded, config.task_folder)
    with quiet_harness():
        return {name: load_task(name, index, config) for name in expanded}


def check_chat_template(tokenizer: Any) -> None:
    """Refuse a tokenizer that has no chat template.

    Raises:
        ConfigError: it has none.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            "eval.chat_template is true, and the tokenizer of this model has no chat template. "
            "Set it to false, or evaluate a model that was trained to chat"
        )


def evaluate_task(
    model: Any, tokenizer: Any, task: LoadedTask, config: EvalConfig, reporter: Reporter
) -> dict[str, TaskResult]:
    """Return what ``model`` scores in a task, by its name.

    A group of tasks, such as mmlu, gives its own result, if it has one, and those of its members.
    The log-likelihoods are float32 whatever the type of the model: in bfloat16 many would be equal.

    Args:
        model: a causal transformers model, on the device where it shall run.
        tokenizer: the tokenizer of the model; left as it is.
        task: what ``load_tasks`` gives.

    Raises:
        ConfigError: a chat template is asked for, and the tokenizer has none.
        DataError: an answer is longer than the model's context.
        NumericalError: the model computes NaN.
    """
    from lm_eval.evaluator import evaluate

    from spp_cli.evaluation import seeds
    from spp_cli.evaluation.scorer import ReportingScorer, quiet_harness

    if config.chat_template:
        check_chat_template(tokenizer)
    if task.name == next_line.NAME and (missing := missing_modules("test")):
        reporter.warn(f"{task.name}: this Python lacks {', '.join(missing)}; scores differ")
    training = model.training
    try:
        with quiet_harness(), seeds.drawing(task.random_state):
            scorer = ReportingScorer(model, tokenizer, config.batch_size, reporter)
            scorer.title = task.name
            found = evaluate(
                scorer,
                task.begin(),
                limit=config.limit,
                bootstrap_iters=100,
                log_samples=False,
                apply_chat_template=config.chat_template,
                fewshot_as_multiturn=config.chat_template,  # as the harness's own command does
            )
    finally:
        model.train(training)
    return _results(found, task, config)


def _results(
    found: Mapping[str, Any], task: LoadedTask, config: EvalConfig
) -> dict[str, TaskResult]:
    """Return the numbers of the harness's report, without the filter "none" in their names."""
    group_of = {
        member: group for group, members in found["group_subtasks"].items() for member in members
    }
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
                num_fewshot=task.num_fewshot(name),
                chat_template=config.chat_template,
                data=task.data_digest(name)[:16],
                harness=harness_version(),
                group=group_of.get(name),
                higher_is_better=found["higher_is_better"].get(name) or {},
            )
    return results


def require_harness() -> None:
    """Refuse to go on without lm-evaluation-harness.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        if error.name != "lm_eval":
            raise
        raise MissingExtraError("lm-eval", "eval", "evaluation on tasks") from error
