"""The data sets of the harness's tasks, from a folder on disk or from the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from spp_cli.config import EvalConfig
from spp_cli.data.hub import offline_if_unreachable
from spp_cli.errors import ConfigError, DataError
from spp_cli.evaluation.scorer import replaced

__all__ = ["Source", "data_folder", "needed_splits", "reading_from"]

FILE_READERS = ("arrow", "csv", "json", "parquet", "text")  # data set names that are no hub ids
UNREADABLE = (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError)


@contextmanager
def reading_from(config: EvalConfig, shots: Callable[[Any], int]) -> Iterator[None]:
    """Let tasks that are made in this context read the copies in ``config.data_folder``.

    A copy of the hub's owner/name stands in DATA_FOLDER/owner/name as it does on the hub: Parquet,
    JSON lines or CSV, a subset in a folder of its name or as README.md says. What has no copy is
    read from the hub or from its cache. ``shots`` tells how many solved examples a task shows.

    Raises:
        ConfigError: ``config.data_folder`` is not a folder, or a task has no data set.
        DataError: a data set cannot be read, from anywhere, or lacks a split that the task needs.
    """
    folder = data_folder(config)
    # Every YAML task of the harness, alone or in a group, gets its data from this one method.
    original = ConfigurableTask.download
    lasting = ExitStack()

    @cache
    def hub_answers() -> bool:
        return lasting.enter_context(offline_if_unreachable())

    def download(task: Any, keywords: dict[str, Any] | None = None, **options: Any) -> None:
        if callable(task.config.custom_dataset):
            original(task, keywords, **options)
            return
        if not task.DATASET_PATH:
            raise ConfigError(
                f"task {task.task_name} has no dataset_path: where are its questions?"
            )
        source = Source(task.DATASET_PATH, task.DATASET_NAME, folder)
        reachable = not source.is_on_hub or hub_answers()
        try:
            task.DATASET_PATH, task.DATASET_NAME, directory = source.arguments()
            original(task, {**(keywords or {}), **directory}, **options)
        except UNREADABLE as error:
            reason = source.explain(error, reachable)
            raise DataError(f"task {task.task_name}: {reason}") from error
        _settle_splits(task, source, shots(task))
        for owner in (task.config, task.config.fewshot_config):
            if owner.process_docs is not None:
                owner.process_docs = _once(owner.process_docs)

    with lasting, replaced(ConfigurableTask, "download", download), _nothing_remembered():
        yield


def _once(process: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what processes each split once: a task asks for it again and again.

    One that shuffles would shuffle anew each time.
    """
    made: dict[int, tuple[Any, Any]] = {}

    @wraps(process)
    def processed(split: Any) -> Any:
        if id(split) not in made:
            made[id(split)] = split, process(split)
        return made[id(split)][1]

    return processed


@contextmanager
def _nothing_remembered() -> Iterator[None]:
    """Let nothing that a task makes of its data come from a cache, where it had other seeds."""
    remembers = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if remembers:
            datasets.enable_caching()


def data_folder(config: EvalConfig) -> Path | None:
    """Return the folder with copies of data sets, if one is configured.

    Raises:
        ConfigError: it is not a folder.
    """
    folder = Path(config.data_folder).expanduser() if config.data_folder else None
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"eval.data_folder is {config.data_folder!r}, which is not a folder")
    return folder


@dataclass(frozen=True)
class Source:
    """A data set as a task names it: a hub id, a folder, or a reader of files such as "json"."""

    path: str
    subset: str | None
    data_folder: Path | None

    def __str__(self) -> str:
        return f"{self.path} ({self.subset})" if self.subset else self.path

    @property
    def copy(self) -> Path | None:
        """The local copy, if there is one."""
        folder = self.data_folder / self.path if self.data_folder else None
        return folder if folder and folder.is_dir() else None

    @property
    def is_on_hub(self) -> bool:
        """Whether the data must come from the hub."""
        return not (self.copy or self.path in FILE_READERS or Path(self.path).exists())

    def arguments(self) -> tuple[str, str | None, dict[str, str]]:
        """Return path, name and what else ``datasets.load_dataset`` shall be called with."""
        if self.copy is None:
            return self.path, self.subset, {}
        path = str(self.copy)
        if self.subset is None or self.subset in datasets.get_dataset_config_names(path):
            return path, self.subset, {}
        # A copy without the README.md that names the subsets still has them as folders.
        return path, None, {"data_dir": self.subset}

    def explain(self, error: BaseException, reachable: bool) -> str:
        """Return why the data set cannot be read, and how to supply it from disk."""
        reason = " ".join(str(error).split()).rstrip(".")
        if not self.is_on_hub:
            where = f" in {self.copy}" if self.copy else ""
            return f"data set {self}{where} cannot be read: {reason}"
        if not reachable:
            reason = "the hub cannot be reached, and no copy is in its cache"
        folder = self.data_folder or "FOLDER"
        return (
            f"data set {self} cannot be read: {reason}. "
            f"Put a copy of it in {folder}/{self.path} and set eval.data_folder: {folder}"
        )


def needed_splits(config: Any, shots: int) -> list[str]:
    """Return the splits that a task reads, by its configuration: questions, then examples."""
    examples = config.fewshot_config.split or config.training_split or config.validation_split
    shown = examples if shots and not config.fewshot_config.samples else None
    return list(dict.fromkeys(filter(None, (_evaluated_split(config), shown))))


def _evaluated_split(config: Any) -> str | None:
    return config.test_split or config.validation_split


def _settle_splits(task: Any, source: Source, shots: int) -> None:
    """Check that the splits to read are there; do without others."""
    config = task.config
    for split in needed_splits(config, shots):
        if split not in task.dataset:
            raise DataError(
                f"task {task.task_name}: data set {source} has no split {split!r}, "
                f"only {', '.join(task.dataset)}. Add the files of that split"
            )
    for owner, key in (
        (config, "training_split"),
        (config, "validation_split"),
        (config.fewshot_config, "split"),
    ):
        if getattr(owner, key) not in task.dataset:
            setattr(owner, key, None)
