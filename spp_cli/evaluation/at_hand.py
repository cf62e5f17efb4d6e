"""Which data sets of tasks are on this machine, told without reading their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.config.task import TaskConfig
from lm_eval.tasks import TaskManager

from spp_cli.config import EvalConfig
from spp_cli.data.hub import splits_at_hand
from spp_cli.data.whereabouts import NOWHERE, Whereabouts, how_to_get, lacking
from spp_cli.errors import DataError
from spp_cli.evaluation import next_line
from spp_cli.evaluation.data_sets import Source, data_folder, needed_splits
from spp_cli.evaluation.harness import expand_tasks
from spp_cli.evaluation.scorer import quiet_harness, replaced
from spp_cli.evaluation.tasks import find_tasks, shots_of

__all__ = ["tasks_at_hand"]


def tasks_at_hand(names: Sequence[str], config: EvalConfig) -> list[Whereabouts]:
    """Return where the data of each task lie; of a group the data sets of its members.

    Raises:
        ConfigError: an unknown task, or a folder that is none.
    """
    expanded = expand_tasks(names)
    index, folder = find_tasks(expanded, config.task_folder), data_folder(config)
    with quiet_harness():
        return [place for name in expanded for place in _whereabouts(name, index, config, folder)]


def _whereabouts(
    name: str, index: TaskManager, config: EvalConfig, folder: Path | None
) -> Iterator[Whereabouts]:
    """Yield one entry for each data set of a task or a group."""
    by_path: dict[str, list[Any]] = {}
    for task in [] if name == next_line.NAME else _configurations(name, index):
        path = "" if callable(task.custom_dataset) else task.dataset_path or ""
        by_path.setdefault(path, []).append(task)
    for path, tasks in by_path.items() or [("", [])]:
        if not path:
            yield Whereabouts(name, "the task's own", "embedded")
            continue
        problems = {}
        for task in tasks:
            source = Source(path, task.dataset_name, folder)
            wanted = needed_splits(task, shots_of(task, name, config.num_fewshot))
            if problem := _problem(source, wanted, task.dataset_kwargs or {}):
                problems[task.dataset_name or path] = problem
        yield _entry(name, source, [task.dataset_name for task in tasks], problems)


def _entry(
    name: str, source: Source, subsets: Sequence[str | None], problems: dict[str, str]
) -> Whereabouts:
    named = list(dict.fromkeys(filter(None, subsets)))
    place = str(source.copy or ("" if source.is_on_hub else source.path)) or None
    if not problems:
        state = "copy" if source.copy else "cache" if source.is_on_hub else "on disk"
        return Whereabouts(name, source.path, state, place, named)  # type: ignore[arg-type]
    subset, problem = next(iter(problems.items()))
    if len(named) > 1:
        problem = f"{len(problems)} of {len(named)} subsets, {subset} first: {problem}"
    remedy = "Mend dataset_path or dataset_kwargs of the task"
    if source.copy or source.is_on_hub:
        remedy = how_to_get(source.path, source.data_folder)
    return Whereabouts(name, source.path, "missing", place, named, problem, remedy)


def _problem(source: Source, wanted: Sequence[str], keywords: dict[str, Any]) -> str:
    """Return what is wrong with a data set on this machine; nothing if it can be read."""
    try:
        path, subset, directory = source.arguments()
        how = {key: value for key, value in keywords.items() if key != "trust_remote_code"}
        splits = splits_at_hand(path, subset, **how, **directory)
    except (DataError, OSError, ValueError) as error:
        if source.is_on_hub:
            return NOWHERE
        return " ".join(str(error).split()).rstrip(".")
    return lacking(wanted, splits)


def _configurations(name: str, index: TaskManager) -> list[Any]:
    """Return the configuration of a task, or of each task in a group; no data are read."""

    def note(task: Any, *_: Any, config: dict[str, Any] | None = None, **__: Any) -> None:
        task._config = task.CONFIG or TaskConfig(**(config or {}))

    with replaced(ConfigurableTask, "__init__", note):
        return [task.config for task in index.load([name])["tasks"].values()]
