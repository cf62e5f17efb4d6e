"""Models of the Hugging Face hub: downloaded once, then read from the hub's cache."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from spp_cli.data.hub import offline_if_unreachable
from spp_cli.errors import ModelError
from spp_cli.models.checkpoint import INDEX, SINGLE, WEIGHTS_KEY
from spp_cli.models.companions import belonging
from spp_cli.models.origin import CARD, LICENCES
from spp_cli.reading import read_json

__all__ = ["download", "in_cache"]

_TERMS = (CARD, *LICENCES)  # on which it is given
# Without the hub a copy in the cache has to have these; earlier versions fetched less of the rest.
_LEAST = ("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def download(
    hub_id: str, revision: str | None = None, *, with_code: bool = False, with_weights: bool = True
) -> Path:
    """Return the folder of a model in the hub's cache, downloaded first if it is not there.

    Those are the files that belong to it, and of its weights those that transformers would load.
    ``with_code``: take the Python files that come with it, too; ``with_weights``: and its weights.

    Raises:
        ModelError: there is no such model or revision, or it is gated, or the hub does not answer
            and the cache has no copy, which is found out within seconds.
    """
    from huggingface_hub import errors

    with offline_if_unreachable() as reachable:
        try:
            names = _listed(hub_id, revision) if reachable else None
            wanted = _LEAST if names is None else _wanted(names, with_code)
            folder = _snapshot(hub_id, revision, wanted, cached=names is None)
            if with_weights:
                weights = _weights(folder, names)
                folder = _snapshot(hub_id, revision, weights, cached=names is None)
        # What else the client lets through, of its HTTP library say, depends on its version.
        except Exception as error:
            if not reachable:
                problem = "no connection to the hub, nor a copy in its cache"
            elif isinstance(error, errors.GatedRepoError):
                problem = "its owner must let you in. Ask on its page, then: hf auth login"
            elif isinstance(error, errors.RepositoryNotFoundError):
                problem = "it is not on the hub, or is private (hf auth login)"
            elif isinstance(error, errors.RevisionNotFoundError):
                problem = f"it has no revision {revision} on the hub"
            else:
                problem = " ".join(str(error).split())[:300] or type(error).__name__
            raise ModelError(
                f"model {hub_id}: no such folder here, and {problem}. "
                "Give the folder of a model with --model"
            ) from error
    return folder


def in_cache(hub_id: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model in the hub's cache; None if it has none, and no look further."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(hub_id, revision, _LEAST, cached=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _listed(hub_id: str, revision: str | None) -> list[str] | None:
    """Return the names of a model's files on the hub; None if it fails, and there is a copy."""
    from huggingface_hub import HfApi, errors

    try:
        found = HfApi().model_info(hub_id, revision=revision)
        return [file.rfilename for file in found.siblings or ()]
    except errors.RevisionNotFoundError:
        raise
    except Exception:
        if in_cache(hub_id, revision) is None:
            raise
        return None


def _wanted(names: Sequence[str], with_code: bool) -> list[str]:
    """Return what to fetch of a model's files, without the weights."""
    terms = [name for name in names if any(fnmatchcase(name, pattern) for pattern in _TERMS)]
    found = [*belonging(names), *filter(_is_index, names), *terms]
    return [name for name in found if with_code or not name.endswith(".py")]


def _snapshot(hub_id: str, revision: str | None, names: Sequence[str], *, cached: bool) -> Path:
    """Return the folder in the cache, with those of the files ``names`` that the hub has.

    ``cached``: the hub is not asked.
    """
    from huggingface_hub import snapshot_download

    # The client takes patterns: a name with brackets in it would be one.
    patterns = [glob.escape(name) for name in names]
    return Path(
        snapshot_download(
            hub_id, revision=revision, allow_patterns=patterns, local_files_only=cached
        )
    )


def _weights(folder: Path, names: Sequence[str] | None) -> list[str]:
    """Return the names of the weights that transformers would load; none if it would find none."""
    named = _value(folder / "config.json", WEIGHTS_KEY)
    if isinstance(named, str):
        index = named
    elif SINGLE in names if names is not None else (folder / SINGLE).is_file():
        index = SINGLE
    else:
        index = INDEX
    if not _is_index(index):
        return [index]
    shards = _value(folder / index, "weight_map")
    return sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []


def _is_index(name: str) -> bool:
    return name.endswith(".safetensors.index.json") and "/" not in name


def _value(path: Path, key: str) -> Any:
    """Return what a JSON file has under a key; None if it is not there, or cannot be read."""
    try:
        return read_json(path)[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
