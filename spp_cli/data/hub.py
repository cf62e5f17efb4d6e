"""Data sets of the Hugging Face hub, or copies of them on disk, row by row through ``datasets``."""

from __future__ import annotations

import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spp_cli.data.files import Row, read_rows
from spp_cli.data.tables import Table
from spp_cli.errors import DataError

__all__ = [
    "HubSet",
    "hub_rows",
    "hub_stream",
    "hub_table",
    "offline_if_unreachable",
    "place_in_copy",
    "splits_at_hand",
]

PATIENCE = 5.0  # seconds to wait for the hub's first answer
_SHUFFLED_AT_ONCE = 10_000  # rows of a stream; a few megabytes, so that the first come soon


@dataclass(frozen=True)
class HubSet:
    """One split of a data set: ``name`` is "owner/name", ``file`` one of its files or all."""

    name: str
    subset: str | None
    split: str
    file: str | None = None

    def __str__(self) -> str:
        details = [self.file] if self.file else [self.subset, f"split {self.split}"]
        return f"{self.name} ({', '.join(filter(None, details))})"


def hub_rows(wanted: HubSet, *, data_folder: str | None, remedy: str) -> Iterator[Row]:
    """Yield the rows of ``wanted``, from ``data_folder``/owner/name if that is there.

    ``remedy`` is the sentence that ends an error message: how to supply the data set from disk.

    Raises:
        DataError: no such data set, subset, split or file; or the hub cannot be reached, which is
            found out within seconds.
    """
    copy = Path(data_folder).expanduser() / wanted.name if data_folder else None
    if data_folder and not Path(data_folder).expanduser().is_dir():
        raise DataError(f"eval.data_folder is {data_folder!r}, which is not a folder")
    with _explained(wanted, remedy):
        rows = _rows_of_copy(wanted, copy) if copy and copy.is_dir() else _rows_of_hub(wanted)
        for number, value in enumerate(rows, start=1):
            yield Row(f"{wanted.name} row {number}", value)


def hub_table(wanted: HubSet, *, folder: Path | None, remedy: str) -> Table:
    """Return the rows of ``wanted`` by number, from ``folder`` in the hub's layout if one is given.

    They lie in the cache of ``datasets``, mapped into memory.

    Raises:
        DataError: as ``hub_rows``.
    """
    with _explained(wanted, remedy):
        rows = _load(wanted, folder)
    return Table(len(rows), lambda number: Row(f"{wanted.name} row {number + 1}", rows[number]))


def hub_stream(wanted: HubSet, *, folder: Path | None, remedy: str, seed: int) -> Iterator[Row]:
    """Yield the rows of ``wanted`` as they come, the files and each 10,000 rows shuffled.

    Raises:
        DataError: as ``hub_rows``.
    """
    with _explained(wanted, remedy):
        rows = _load(wanted, folder, streaming=True).shuffle(seed, buffer_size=_SHUFFLED_AT_ONCE)
        for number, value in enumerate(rows, start=1):
            yield Row(f"{wanted.name} row {number} of its stream", value)


@contextmanager
def _explained(wanted: HubSet, remedy: str) -> Iterator[None]:
    """Turn whatever hinders a data set into a DataError of one line that ends with ``remedy``."""
    import datasets  # slow to import, and needed by few runs

    try:
        yield
    except (
        OSError,
        ValueError,
        RuntimeError,
        datasets.exceptions.DatasetsError,
        *_http_errors(),
    ) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(f"data set {wanted}: {reason}. {remedy}") from error


def _http_errors() -> list[type[Exception]]:
    # The hub's client lets the errors of its HTTP library through, which depends on its version.
    loaded = filter(None, map(sys.modules.get, ("httpx2", "httpx")))
    return [library.HTTPError for library in loaded]


def _rows_of_copy(wanted: HubSet, folder: Path) -> Iterator[Any]:
    if wanted.file:
        if not (folder / wanted.file).is_file():
            raise FileNotFoundError(f"the copy in {folder} lacks this file")
        return (row.value for row in read_rows(folder / wanted.file))
    # Streamed, the files are read where they are, without a second copy in a cache.
    return iter(_load(wanted, folder, streaming=True))


def _rows_of_hub(wanted: HubSet) -> Iterator[Any]:
    import huggingface_hub

    if not wanted.file:
        return iter(_load(wanted, None))
    with _or_no_connection():
        download = huggingface_hub.hf_hub_download
        file = download(wanted.name, wanted.file, repo_type="dataset")
    return (row.value for row in read_rows(Path(file)))


def _load(wanted: HubSet, folder: Path | None, *, streaming: bool = False) -> Any:
    import datasets

    how = {"split": wanted.split, "streaming": streaming}
    if folder is None:
        with _or_no_connection():
            return datasets.load_dataset(wanted.name, wanted.subset, **how)
    folder, subset = place_in_copy(folder, wanted.subset)
    return datasets.load_dataset(str(folder), subset, **how)


def place_in_copy(folder: Path, subset: str | None) -> tuple[Path, str | None]:
    """Return folder and subset by which ``datasets`` finds a subset of a copy of a data set."""
    if subset and (folder / subset).is_dir() and not (folder / "README.md").is_file():
        return folder / subset, None  # only the README tells datasets of subsets
    return folder, subset


@contextmanager
def _or_no_connection() -> Iterator[None]:
    with offline_if_unreachable() as reachable:
        try:
            yield
        except OSError:
            if reachable:
                raise
            raise ConnectionError("no connection to the hub, nor a copy in its cache") from None


@contextmanager
def offline_if_unreachable() -> Iterator[bool]:
    """Run a block from the hub's cache alone if the hub does not answer; give whether it does.

    Left to itself, the hub's client tries for half a minute, and for each file anew.
    """
    from datasets import config
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or config.HF_HUB_OFFLINE:
        yield False
        return
    reachable = _answers(constants.ENDPOINT)
    with nullcontext() if reachable else offline():
        yield reachable


@contextmanager
def offline() -> Iterator[None]:
    """Run a block from what is on this machine, the hub's cache included."""
    from datasets import config
    from huggingface_hub import constants

    # Both libraries read their switch from the environment on import, and look at it at each use.
    modules: tuple[Any, ...] = (constants, config)
    switches = [(module, module.HF_HUB_OFFLINE) for module in modules]
    try:
        for module, _ in switches:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, before in switches:
            module.HF_HUB_OFFLINE = before


def splits_at_hand(path: str, subset: str | None, **how: Any) -> set[str]:
    """Return the splits of a data set in a folder or in the hub's cache; reads none of its rows.

    ``how`` is what else ``datasets.load_dataset`` would be given.

    Raises:
        DataError: it is not there, or has no such subset.
    """
    import datasets

    try:
        with offline():
            builder = datasets.load_dataset_builder(path, subset, **how)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(" ".join(str(error).split()).rstrip(".")) from error
    if builder.config.data_files is None:
        return set(map(str, builder.info.splits or ()))
    # A README.md may promise a split whose files are not there.
    return {str(split) for split, files in builder.config.data_files.items() if files}


def _answers(endpoint: str) -> bool:
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True  # an answer, if not a friendly one
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the client may trust more certificates
    except OSError:
        return False
