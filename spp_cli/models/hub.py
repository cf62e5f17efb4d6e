"""Models of the Hugging Face hub: downloaded once, then read from the hub's cache."""

from __future__ import annotations

from pathlib import Path

from spp_cli.data.hub import offline_if_unreachable
from spp_cli.errors import ModelError

__all__ = ["download", "in_cache"]

_WEIGHTS = "*.safetensors"
_WANTED = (
    _WEIGHTS, "*.json", "*.model", "*.txt", "*.jinja",
    "README.md", "LICEN[SC]E*", "NOTICE*", "USE_POLICY*",  # the terms it is given on
)  # fmt: skip
# Some models hold their weights once more, in other formats, in folders of their own.
_UNWANTED = ("original/*", "*/*.safetensors")


def download(
    hub_id: str, revision: str | None = None, *, with_code: bool = False, with_weights: bool = True
) -> Path:
    """Return the folder of a model in the hub's cache, downloaded first if it is not there.

    ``with_code``: take the Python files that come with it, too; ``weights``: and its weights.

    Raises:
        ModelError: there is no such model or revision, or it is gated, or the hub does not answer
            and the cache has no copy, which is found out within seconds.
    """
    from huggingface_hub import errors, snapshot_download

    wanted = [name for name in _WANTED if with_weights or name != _WEIGHTS]
    with offline_if_unreachable() as reachable:
        try:
            folder = snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=[*wanted, "*.py"] if with_code else wanted,
                ignore_patterns=list(_UNWANTED),
            )
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
    return Path(folder)


def in_cache(hub_id: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model in the hub's cache; None if it has none, and no look further."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
