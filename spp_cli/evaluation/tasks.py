"""Where tasks come from: the embedded one, the harness's own, or a folder of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from lm_eval.tasks import TaskManager

from spp_cli.config import EvalConfig, nearest
from spp_cli.errors import ConfigError
from spp_cli.evaluation import next_line
from spp_cli.evaluation.data_sets import reading_from
from spp_cli.evaluation.scorer import quiet_harness

__all__ = ["find_tasks", "load_task"]

FEWSHOT_SEED = 1234  # the harness's own default
UNUSABLE = (AttributeError, ImportError, LookupError, OSError, TypeError, ValueError)


def find_tasks(names: Sequence[str], folder: str | None) -> TaskManager:
    """Return an index of tasks that has all ``names``.

    ``folder`` holds YAML files of the user's own tasks, which come before the harness's.

    Raises:
        ConfigError: no such folder, or an unknown name.
    """
    path = Path(folder).expanduser().resolve() if folder is not None else None
    if path is not None and not path.is_dir():
        raise ConfigError(f"eval.task_folder is {folder!r}, which is not a folder")
    wanted = [name for name in names if name != next_line.NAME]
    own = _index(path, False)
    # The harness has thousands of YAML files: they are read, in seconds, only if a name needs them.
    if set(wanted) <= set(own.all_subtasks):
        return own
    index = _index(path, True)
    for name in wanted:
        if name not in index.all_tasks:
            yours = f" ({folder} has {', '.join(own.all_tasks) or 'none'})" if folder else ""
            known = [*index.all_tasks, next_line.NAME, "zeroshot", "perplexity"]
            hint = nearest(name, known) or ". All names: lm-eval ls tasks"
            raise ConfigError(f"eval.tasks names {name!r}, an unknown task{yours}{hint}")
    return index


@cache
def _index(folder: Path | None, with_harness: bool) -> TaskManager:
    with quiet_harness():
        return TaskManager(include_path=folder, include_defaults=with_harness)


def load_task(name: str, index: TaskManager, config: EvalConfig) -> dict[str, Any]:
    """Return a task, or the tasks of a group, as ``lm_eval.evaluator.evaluate`` takes them.

    Raises:
        ConfigError: the task cannot run here.
        DataError: its data cannot be read.
    """
    if name == next_line.NAME:
        return {"tasks": {name: next_line.task()}, "groups": {}}
    try:
        with reading_from(config):
            loaded = index.load([name])
    except (*UNUSABLE, jinja2.TemplateError) as error:
        raise ConfigError(f"task {name} cannot be set up: {_one_line(error)}") from error
    for task_name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(f"task {task_name} runs code that the model writes; spp does not")
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError(f"task {task_name} needs a model that sees or hears")
        if task.get_config("num_fewshot") != 0:  # a task that says 0 has no examples to show
            task.set_config("num_fewshot", config.num_fewshot)
        task.set_fewshot_seed(FEWSHOT_SEED)
    return loaded


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if isinstance(error, LookupError) else text
