"""What a text source holds at this moment, told without tokenizing it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spp_cli.data.stdlib import Part, read_texts
from spp_cli.fingerprint import canonical_json, file_digest, sha256

__all__ = ["source_digest"]


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
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return sha256(canonical_json([file_digest(file, cache) for file in files]))
