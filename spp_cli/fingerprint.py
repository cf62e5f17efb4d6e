"""What decides a result, settings and digests of inputs: computed, compared, put on record."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EACCES, EDQUOT, EEXIST, EFBIG, ENOSPC, ENOTDIR, EPERM, EROFS
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat
from safetensors import SafetensorError

from spp_cli import __version__
from spp_cli.atomic_files import UnfinishedFile, remove_leftovers
from spp_cli.errors import WorkspaceError
from spp_cli.reading import read_json
from spp_cli.stage_facts import deciding, reads_seed

FORMAT = 2  # raised when the same settings and inputs come to mean another result
_ARITHMETIC = ("torch", "transformers")
PACKAGES = ("torch", "transformers", "datasets", "lm_eval")
_CHANGING = [0, math.inf, math.inf, 0]  # in place of the state of a file that changes
_READERS = 4  # files that are read at once
_YOUNG = 2_000_000_000  # nanoseconds; some file systems count time in steps of two seconds
NOT_SET = object()  # in place of a value that one of two does not have
_FULL = (ENOSPC, EDQUOT, EFBIG)
_FREE_SPACE = "Finished stages are intact. Free some space, then run the same command again"


@dataclass(frozen=True)
class Fingerprint:
    """What a stage's result is made from: settings, inputs and seed; no path, run name or device.

    ``settings`` are the sections that matter for the stage, nested as in the YAML; ``inputs`` are
    digests by name, where an earlier stage of the run goes by the stage's name. ``defaults`` are
    the keys of ``settings``, each from the section down, that have their default value.

    Digest and comparisons leave out what decides nothing, as ``stage_facts`` has it.
    """

    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    seed: int
    format: int = FORMAT
    defaults: frozenset[tuple[str, ...]] = frozenset()

    def record(self) -> dict[str, Any]:
        """Return what is kept of it on the disk."""
        return {name: value for name, value in vars(self).items() if name != "defaults"}

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the canonical JSON of all that decides."""
        seed = self.seed if reads_seed(self.settings) else None
        decided = {"settings": deciding(self.settings), "seed": seed}
        return sha256(canonical_json({**self.record(), **decided}))

    def is_met_by(self, old: Fingerprint) -> bool:
        """Whether what was made from ``old`` is what this one asks for.

        ``old`` may be of an earlier version of spp, and lack settings that have been added since:
        it was made as they are by default.
        """
        return not differences(old, self) and not changed_inputs(old, self)


class Manifest(BaseModel):
    """What a finished stage puts on record: how it was made, from what, and what came of it.

    ``files`` are the sizes in bytes of the output by path; ``started`` and ``finished`` ISO times.
    ``digests`` are the SHA-256 of those that later stages read, of which ``output_digest`` is made.
    ``borrowed_from`` is the run that made it all, if this one has only linked it.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    format: int
    fingerprint: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    seed: int
    versions: dict[str, str]
    platform: str
    mask_digest: str | None
    output_digest: str
    files: dict[str, int]
    metrics: dict[str, Any]
    seconds: FiniteFloat
    peak_memory_bytes: int | None
    started: str
    finished: str
    borrowed_from: str | None = None
    digests: dict[str, str] = {}

    def made_from(self) -> Fingerprint:
        """Return the fingerprint that this result was made from."""
        return Fingerprint(self.settings, self.inputs, self.seed, self.format)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest has on the disk: its values, and a digest of them."""
    plain = json.loads(json.dumps(dict(record), default=_plain))
    return {**plain, "sha256": _seal(plain)}


def is_as_sealed(record: Mapping[str, Any]) -> bool:
    """Whether ``record``, read again, is what ``sealed`` returned, or is from before it was there.

    If so, cards and reports may take its values for what a stage wrote.
    """
    return record.get("sha256") in (None, _seal(record))


def _seal(record: Mapping[str, Any]) -> str:
    values = {key: value for key, value in record.items() if key != "sha256"}
    return sha256(json.dumps(values, sort_keys=True))


@dataclass(frozen=True)
class Difference:
    """One setting that two fingerprints do not share; as text "prune.sparsity: 0.5 → 0.75"."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_text(self.old)} → {_text(self.new)}"


def differences(old: Fingerprint, new: Fingerprint) -> list[Difference]:
    """Return every setting that decides and is not the same, a seed that is read included.

    One that ``old`` lacks is the same if ``new`` has its default. Inputs are not compared.
    """
    found = [Difference("format of spp", old.format, new.format)] * (old.format != new.format)
    if old.seed != new.seed and any(reads_seed(each.settings) for each in (old, new)):
        found.append(Difference("seed", old.seed, new.seed))
    before, after = leaves(deciding(old.settings)), leaves(deciding(new.settings))
    for keys in dict.fromkeys([*before, *after]):
        was, becomes = before.get(keys, NOT_SET), after.get(keys, NOT_SET)
        if was is NOT_SET and keys in new.defaults:
            continue
        if NOT_SET in (was, becomes) or canonical_json(was) != canonical_json(becomes):
            found.append(Difference(".".join(keys), was, becomes))
    return found


def changed_inputs(old: Fingerprint, new: Fingerprint) -> list[str]:
    """Return the names of inputs whose digests differ, or that only one of the two has."""
    names = sorted({*old.inputs, *new.inputs})
    return [name for name in names if old.inputs.get(name) != new.inputs.get(name)]


def canonical_json(value: Any) -> str:
    """Return JSON that is equal for equal values: sorted keys, no spaces, tuples as lists."""
    # Reading it back first turns every key into text, so that the order is that of the texts.
    plain = json.loads(json.dumps(value, allow_nan=False))
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def leaves(settings: Any, keys: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return the values below the sections by their keys; an empty section counts as a value."""
    if not isinstance(settings, Mapping) or (keys and not settings):
        return {keys: settings}
    found: dict[tuple[str, ...], Any] = {}
    for key, value in settings.items():
        found |= leaves(value, (*keys, str(key)))
    return found


def _text(value: Any) -> str:
    if value is NOT_SET:
        return "not set"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def sha256(text: str) -> str:
    """Return the SHA-256 of ``text``, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python, spp and the packages that make results; imports none."""
    found = {"python": platform.python_version(), "spp": __version__}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def arithmetic() -> dict[str, str]:
    """Return the versions of the packages that compute: another one may round in another way."""
    return {name: version for name, version in versions().items() if name in _ARITHMETIC}


def file_digest(path: str | Path, cache: Path | None = None) -> str:
    """Return the SHA-256 of a file, in hex; otherwise as ``file_digests``."""
    file = Path(path)
    return file_digests(file.parent, [file.name], cache)[file.name]


def file_digests(
    folder: str | Path, names: Iterable[str], cache: Path | None = None
) -> dict[str, str]:
    """Return the SHA-256, in hex, of each file by its name relative to ``folder``.

    ``cache`` is a JSON file that remembers digests by absolute path, size, times and inode, so that
    a model is not read twice. A cache that is corrupt or cannot be written costs time only.

    Raises:
        WorkspaceError: a file cannot be read.
    """
    files = {name: (Path(folder) / name).resolve() for name in names}
    known, found = _read_cache(cache), {}
    try:
        # hashlib lets go of the interpreter: several files are read at once.
        with ThreadPoolExecutor(_READERS) as readers:
            reading = {file: readers.submit(_digest, file, known) for file in files.values()}
            for file, entry in reading.items():
                with disk_errors(file, "read"):
                    found[file] = entry.result()
    finally:
        _remember(cache, {str(file): entry for file, entry in found.items() if _is_settled(entry)})
    return {name: str(found[file][-1]) for name, file in files.items()}


def _digest(file: Path, known: Mapping[str, Any]) -> list[Any]:
    """Return the entry of a file: its state, and its digest, remembered or read."""
    before = _state(file)
    entry = known.get(str(file))
    if isinstance(entry, list) and entry[:-1] == before and _is_settled(entry):
        return entry
    digest = _sha256(file)
    # Of a file that changes meanwhile nothing is remembered.
    return [*(before if _state(file) == before else _CHANGING), digest]


def _is_settled(entry: Sequence[Any]) -> bool:
    """Whether any change of a file since would show in its times.

    Those of a file this young may stay as they are when it changes; and who knows what clock has
    set those that are still to come?
    """
    return time.time_ns() - max(entry[1:-2]) > _YOUNG


def _state(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _remember(cache: Path | None, entries: Mapping[str, Any]) -> None:
    known = _read_cache(cache)
    if cache is not None and any(known.get(path) != entry for path, entry in entries.items()):
        with suppress(OSError, WorkspaceError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            kept = {path: entry for path, entry in known.items() if os.path.exists(path)}
            write_json(cache, {**kept, **entries})


def remember_as(cache: Path | None, old: Path, new: Path) -> None:
    """Have ``cache`` know by their new paths the files of a folder that was renamed to ``new``."""
    before = f"{old.resolve()}{os.sep}"
    known = _read_cache(cache)
    moved = {path.removeprefix(before): known[path] for path in known if path.startswith(before)}
    _remember(cache, {str(new.resolve() / name): entry for name, entry in moved.items()})


def folder_digest(folder: str | Path, names: Iterable[str], cache: Path | None = None) -> str:
    """Return the SHA-256 over the ``names``, relative to ``folder``, and their files' digests."""
    return digest_of(file_digests(folder, names, cache))


def digest_of(digests: Mapping[str, str]) -> str:
    """Return the SHA-256 over names of files and their digests."""
    return sha256(canonical_json(digests))


def listing_digest(folder: Path) -> str:
    """Return the SHA-256 over the names, sizes and times of change of all files in a folder.

    It is another one if a file may be; none is read.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    listing = [[str(file.relative_to(folder)), *_state(file)[:2]] for file in files]
    return sha256(canonical_json(listing))


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _read_cache(cache: Path | None) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        entries = read_json(cache) if cache else {}
        return entries if isinstance(entries, dict) else {}
    return {}


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path`` at once: a reader sees the old file or the new one.

    Raises:
        WorkspaceError: the disk is full, or ``path`` cannot be written; it is as it was before.
    """
    write_text(path, as_json(value) + "\n")


def as_json(value: Any) -> str:
    """Return ``value`` as JSON to read; scalars of numpy and torch become Python's."""
    return json.dumps(value, indent=2, default=_plain)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` as ``write_json`` does.

    What killed writers left next to it is removed.
    """
    path, data = Path(path), text.encode()
    with disk_errors(path):
        remove_leftovers(path.parent)
        UnfinishedFile(path, lambda stream: stream.write(data)).finish()


def _plain(value: Any) -> Any:
    """Turn a scalar of numpy or torch into Python's: a long run must not end in a TypeError."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in JSON")


@contextmanager
def disk_errors(path: str | Path, verb: str = "write") -> Iterator[None]:
    """Turn an OSError into a WorkspaceError of one line: which path, why, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            remedy = _FREE_SPACE
        elif error.errno in (EACCES, EPERM, EROFS) and verb == "write":
            remedy = "Choose a folder that you may write with --workspace"
        elif error.errno in (ENOTDIR, EEXIST):
            remedy = "Something else is in its place; move it, or choose another --workspace"
        else:
            remedy = "Mend this, then run the same command again"
        reason = error.strerror or str(error)
        raise WorkspaceError(f"cannot {verb} {path}: {reason}. {remedy}") from error


@contextmanager
def full_disk_errors(folder: Path) -> Iterator[None]:
    """Turn what any library raises when ``folder`` cannot grow into a WorkspaceError of one line.

    safetensors and torch write with code of their own, whose errors have no errno.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        if "iostream error" in str(error):  # torch's writer, of any fault of the disk
            raise WorkspaceError(
                f"cannot write {folder}: the disk fails. Mend this, then run the same command again"
            ) from error
        if not _is_full_disk(error):
            raise
        raise WorkspaceError(f"cannot write {folder}: the disk is full. {_FREE_SPACE}") from error


def _is_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    signs = ("PytorchStreamWriter", "unexpected pos", *(f"os error {number})" for number in _FULL))
    return any(sign in str(error) for sign in signs)
