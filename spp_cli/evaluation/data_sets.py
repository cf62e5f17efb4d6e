"""The data sets of the harness's tasks, from a folder on disk or from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from spp_cli.config import EvalConfig
from spp_cli.data.hub import offline_if_unreachable
from spp_cli.errors import ConfigError, DataError
from spp_cli.evaluation.scorer import replaced

__all__ = ["reading_from"]

FILE_READERS = ("arrow", "csv", "json", "parquet", "text")  # data set names that are no hub ids
UNREADABLE = (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError)


@contextmanager
def reading_from(config: EvalConfig) -> Iterator[None]:
    """Let tasks that are made in this context read the copies in ``config.data_folder``.

    A copy of the hub's owner/name stands in DATA_FOLDER/owner/name as it does on the hub: Parquet,
    JSON lines or CSV, a subset in a folder of its name or as README.md says. What has no copy is
    read from the hub or from its cache.

    Raises:
        ConfigError: ``config.data_folder`` is not a folder, or a task has no data set.
        DataError: a data set cannot be read, from anywhere, or lacks a split that the task needs.
    """
    folder = Path(config.data_folder).expanduser() if config.data_folder else None
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"eval.data_folder is {config.data_folder!r}, which is not a folder")
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
        source = _Source(task.DATASET_PATH, task.DATASET_NAME, folder)
        reachable = not source.is_on_hub or hub_answers()
        try:
            task.DATASET_PATH, task.DATASET_NAME, directory = source.arguments()
            original(task, {**(keywords or {}), **directory}, **options)
        except UNREADABLE as error:
            reason = source.explain(error, reachable)
            raise DataError(f"task {task.task_name}: {reason}") from error
        _settle_splits(task, source, config.num_fewshot)

    with lasting, replaced(ConfigurableTask, "download", download):
        yield


@dataclass(frozen=True)
class _Source:
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


def _settle_splits(task: Any, source: _Source, num_fewshot: int) -> None:
    """Check that the split to evaluate is there; do without others where no examples are shown."""
    config = task.config
    evaluated = config.test_split or config.validation_split
    for key in ("training_split", "validation_split", "test_split"):
        split = getattr(config, key)
        if split is None or split in task.dataset:
            continue
        if split == evaluated or num_fewshot > 0:
            raise DataError(
                f"task {task.task_name}: data set {source} has no split {split!r}, "
                f"only {', '.join(task.dataset)}. Add the files of that split"
            )
        setattr(config, key, None)
