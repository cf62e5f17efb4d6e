"""Where tasks come from: the embedded one, the harness's own, or a folder of the user's."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jinja2
from lm_eval.tasks import TaskManager

from spp_cli.config import EvalConfig, nearest
from spp_cli.errors import ConfigError
from spp_cli.evaluation import next_line, seeds
from spp_cli.evaluation.data_sets import reading_from
from spp_cli.evaluation.scorer import quiet_harness
from spp_cli.fingerprint import sha256

__all__ = ["LoadedTask", "find_tasks", "load_task", "shots_of"]

SHOTS = {"mmlu": 5}  # as published, where neither the task's file nor the user says how many
UNUSABLE = (AttributeError, ImportError, LookupError, OSError, TypeError, ValueError)


@dataclass(frozen=True)
class LoadedTask:
    """A task that was asked for, or the tasks of a group, with their data.

    ``tasks`` and ``groups`` are the harness's objects by name; ``random_state`` is where the
    generators stood when they had been made.
    """

    name: str
    tasks: dict[str, Any]
    groups: dict[str, Any]
    random_state: Any

    def begin(self) -> dict[str, Any]:
        """Return what ``lm_eval.evaluator.evaluate`` takes; the lot for examples begins anew."""
        for task in self.tasks.values():
            task.set_fewshot_seed(seeds.FEWSHOT)
        return {"tasks": self.tasks, "groups": self.groups}

    @cached_property
    def data_digests(self) -> dict[str, str]:
        """The SHA-256, in hex, of each task's questions and of the examples that it may show."""
        return {name: _digest(_documents(task)) for name, task in self.tasks.items()}

    def data_digest(self, name: str) -> str:
        """Return the digest of one task's data, or of a group's."""
        digests = [self.data_digests[member] for member in self._members(name)]
        return digests[0] if name in self.tasks else sha256("".join(digests))

    def num_fewshot(self, name: str) -> int | None:
        """Return the examples that a task shows, or all tasks of a group; None: they differ.

        The harness knows it of a group of tasks, but not of a group of groups such as mmlu.
        """
        shown = {self.tasks[member].config.num_fewshot for member in self._members(name)}
        return shown.pop() if len(shown) == 1 else None

    def _members(self, name: str) -> list[str]:
        if name in self.tasks:
            return [name]
        return sorted(task.task_name for task in self.groups[name].get_all_tasks())

    def definition(self) -> str:
        """Return, as JSON, all that decides the scores but the data.

        That is version, prompts, examples shown, metrics and what is made of them, functions with
        the source code of their whole file.
        """
        tasks = {name: self._of_a_task(name) for name in self.tasks}
        groups = {name: self._of_a_group(name) for name in self.groups}
        return json.dumps([tasks, groups], sort_keys=True, default=_plain)

    def definition_digest(self, name: str) -> str:
        """Return the digest of ``definition`` for one task alone, or for one group's tasks."""
        own = self._of_a_group(name) if name in self.groups else None
        tasks = [self._of_a_task(member) for member in self._members(name)]
        return sha256(json.dumps([own, tasks], sort_keys=True, default=_plain))

    def _of_a_task(self, name: str) -> list[Any]:
        task = self.tasks[name]
        return [str(task.VERSION), _without_data(vars(task.config))]

    def _of_a_group(self, name: str) -> list[Any]:
        group = self.groups[name]
        return [group.version, group.child_names, group.aggregate_metric_list]


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


def load_task(name: str, index: TaskManager, config: EvalConfig) -> LoadedTask:
    """Return a task, or the tasks of a group, with their data.

    What they draw while they are made, options that are shuffled for example, is what the harness's
    own command draws for this task alone.

    Raises:
        ConfigError: the task cannot run here.
        DataError: its data cannot be read.
    """
    with seeds.drawing():
        tasks, groups = _load(name, index, config)
        return LoadedTask(name, tasks, groups, seeds.state())


def _load(
    name: str, index: TaskManager, config: EvalConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
    if name == next_line.NAME:
        return {name: next_line.task()}, {}
    try:
        with reading_from(config, lambda task: shots_of(task.config, name, config.num_fewshot)):
            loaded = index.load([name])
    except (*UNUSABLE, jinja2.TemplateError) as error:
        raise ConfigError(f"task {name} cannot be set up: {_one_line(error)}") from error
    for task_name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(f"task {task_name} runs code that the model writes; spp does not")
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError(f"task {task_name} needs a model that sees or hears")
        task.set_config("num_fewshot", shots_of(task.config, name, config.num_fewshot))
    return loaded["tasks"], loaded["groups"]


def shots_of(task_config: Any, name: str, asked: int | None) -> int:
    """Return how many solved examples a task shows that was asked for by ``name``.

    That is its own or a group's. A task whose file says 0 has none to show, whatever is asked.
    """
    own: int | None = task_config.num_fewshot
    if own == 0 or (asked is None and own is not None):
        return own
    return SHOTS.get(name, 0) if asked is None else asked


def _documents(task: Any) -> Iterator[Any]:
    yield from task.eval_docs
    if task.config.num_fewshot:
        yield from task.fewshot_docs()


def _digest(documents: Iterator[Any]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(document, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _without_data(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a task's configuration without what tells where its data lie, not what is asked."""
    return {
        key: value
        for key, value in settings.items()
        if key not in ("custom_dataset", "metadata")
        and not key.startswith("dataset_")
        and not key.endswith("split")
    }


def _plain(value: Any) -> Any:
    """Return what stands in JSON for a function, or for a part of a configuration."""
    if not callable(value):
        return _without_data(vars(value)) if is_dataclass(value) else str(value)
    value = inspect.unwrap(value)
    try:
        source = Path(inspect.getfile(value)).read_text()
    except (OSError, TypeError):  # built in
        source = ""
    return [value.__qualname__, source]


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if isinstance(error, LookupError) else text
