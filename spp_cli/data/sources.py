"""What a text source holds at this moment, told without tokenizing it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spp_cli.data.folders import NO_TEXT, find_files, is_saved
from spp_cli.data.kinds import kind_of
from spp_cli.data.stdlib import Part, read_texts
from spp_cli.data.streams import compression_of
from spp_cli.fingerprint import canonical_json, file_digest, sha256

__all__ = ["content_digest", "source_digest"]

_ALWAYS_ROWS = (".json", ".jsonl", ".ndjson", ".parquet")  # as which any version has read these


def source_digest(
    source: str | Mapping[str, float], part: Part, *, demo: bool, cache: Path | None = None
) -> str | None:
    """Return a SHA-256 in hex over the text of a local source; None for one on the hub.

    A hub data set is known by its name, which is among the settings already; of several sources,
    with their weights, all that are local count.
    """
    if not isinstance(source, str):
        digests = {name: source_digest(name, part, demo=demo, cache=cache) for name in source}
        return sha256(canonical_json(digests)) if any(digests.values()) else None
    if source == "demo" or (source == "auto" and demo):
        return sha256(canonical_json(read_texts(part)))
    path = Path(source).expanduser()
    if source == "auto" or not path.exists():
        return None
    apart = {} if path.is_file() or is_saved(path) else find_files(path).passed_over
    # What cannot be read counts, as it always did: a folder is to keep its digest.
    about = {path / name for name, reason in apart.items() if reason != NO_TEXT}
    files = [file for file in _files(path) if file not in about]
    return sha256(canonical_json([_entry(file, cache) for file in files]))


def content_digest(path: Path) -> str:
    """Return a SHA-256 in hex over all files of a folder."""
    return sha256(canonical_json([file_digest(file) for file in _files(path)]))


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _entry(file: Path, cache: Path | None) -> str | list[str]:
    """Return a file's digest, with what it is read as where earlier versions read it otherwise."""
    digest, kind, name = file_digest(file, cache), kind_of(file), file.name.lower()
    is_told_by_name = name.removesuffix(".gz").endswith(_ALWAYS_ROWS)
    was_unpacked = compression_of(file) in (None, "gzip")
    if was_unpacked and (is_told_by_name or kind in ("text", "binary")):
        return digest
    return [kind, digest]
