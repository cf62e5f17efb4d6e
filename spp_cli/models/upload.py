"""A model to the Hugging Face hub: all its files in one commit, or none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spp_cli.data.hub import offline_if_unreachable
from spp_cli.errors import ConfigError, HubError, SppError
from spp_cli.progress import Reporter

__all__ = ["Content", "check_repository", "size_of", "upload"]

Content = Path | bytes  # of a file: where it lies, or what is in it
# Of an earlier push: those that the new ones do not replace would be loaded in their place.
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?(\.packed)?\.safetensors(\.index\.json)?")


def check_repository(repository: str) -> None:
    """Refuse what is no OWNER/NAME of the hub.

    Raises:
        ConfigError: it is none.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        is_whole = "/" in repository
    except HFValidationError:
        is_whole = False
    if not is_whole:
        raise ConfigError(
            f"{repository!r} is no repository of the hub; must be OWNER/NAME, at most 96 letters, "
            "digits, '-', '_' and '.'"
        )


def size_of(content: Content) -> int:
    """Return the bytes of a file."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def upload(
    repository: str,
    files: Mapping[str, Content],
    *,
    token: str,
    public: bool,
    revision: str | None,
    message: str,
    reporter: Reporter,
) -> str:
    """Put ``files``, by their names there, into a model's repository; return the commit's address.

    The repository is made if there is none, and so is the branch ``revision``. Weights that are
    there under other names are removed in the same commit. What an upload that was cut off has
    brought there is not sent again.

    Raises:
        HubError: the hub does not answer, or the token does not do; or the repository is there, and
            is public without ``public`` or the other way round.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # the reporter has one of its own
    api = HfApi(token=token)
    with offline_if_unreachable() as reachable, _explained(repository, token):
        if not reachable:
            raise HubError(
                f"push to {repository}: no connection to the hub. Nothing was sent. "
                "Look after the network, HF_ENDPOINT and HF_HUB_OFFLINE, then run this again"
            )
        _prepare(api, repository, public=public, revision=revision)
        known = api.model_info(repository, revision=revision)
        there = [file.rfilename for file in known.siblings or ()]
        superseded = [name for name in there if _WEIGHTS.fullmatch(name) and name not in files]
        if superseded:
            reporter.say(f"to be replaced there: {', '.join(superseded)}")
        additions = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        sizes = {name: size_of(content) / 1e6 for name, content in files.items()}
        with reporter.task("push", sum(sizes.values()), "MB") as progress:
            for addition in additions:
                name = addition.path_in_repo
                api.preupload_lfs_files(
                    repository, [addition], revision=revision, free_memory=False
                )
                progress.advance(sizes[name], name)
        commit = api.create_commit(
            repository,
            [*additions, *(CommitOperationDelete(name) for name in superseded)],
            commit_message=message,
            revision=revision,
        )
    return str(commit.commit_url)


def _prepare(api: Any, repository: str, *, public: bool, revision: str | None) -> None:
    """Make the repository and the branch, where they are not there."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        is_public = not api.model_info(repository).private
    except RepositoryNotFoundError:
        api.create_repo(repository, private=not public)
        is_public = public
    if is_public and not public:
        raise HubError(
            f"push to {repository}: it is there already, and public. Nothing was sent. "
            "Add --public if everybody may have this, or name another"
        )
    if public and not is_public:
        raise HubError(
            f"push to {repository}: it is there already, and private. Nothing was sent. "
            "Leave --public out, or make it public on its page first"
        )
    if revision:
        api.create_branch(repository, branch=revision, exist_ok=True)


@contextmanager
def _explained(repository: str, token: str) -> Iterator[None]:
    """Turn whatever hinders an upload into a HubError of one line, without the token."""
    from huggingface_hub.constants import ENDPOINT

    try:
        yield
    except SppError:
        raise
    # What the client lets through, of its HTTP library and of Xet say, depends on its version.
    except Exception as error:
        status = _status(error)
        if status == 401:
            problem = f"the hub does not accept HF_TOKEN. Make one at {ENDPOINT}/settings/tokens"
        elif status == 403:
            problem = (
                "the owner of HF_TOKEN, or the token itself, may not write there. Take a token "
                f"with write access ({ENDPOINT}/settings/tokens), or another OWNER"
            )
        else:
            text = " ".join(str(_first(error)).split())[:200].rstrip(".") or type(error).__name__
            problem = (
                f"{text.replace(token, '…')}. No commit was made. Run the same command again: "
                "what has arrived is not sent twice"
            )
        raise HubError(f"push to {repository}: {problem}") from error


def _first(error: BaseException) -> BaseException:
    """Return what an error was raised from, in the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status of an answer that an error, or what it was raised from, speaks of."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return int(response.status_code)
        error = error.__cause__
    return None
