"""spp push: the model of a run onto the hub, if that is really wanted."""

from __future__ import annotations

import os

from spp_cli.commands.card import RUN_AND_STAGE, WHOLE_MODELS
from spp_cli.commands.command import Command, Given, run_and_stage, workspace_of
from spp_cli.commands.parameters import WORKSPACE, argument, option, switch
from spp_cli.errors import ConfigError
from spp_cli.models.origin import CARD
from spp_cli.progress import Reporter
from spp_cli.publishing import ARCHIVE
from spp_cli.reporting import tables
from spp_cli.reporting.answer import Answer

__all__ = ["PUSH"]

_TOKEN = "HF_TOKEN"


def _push(given: Given, reporter: Reporter) -> Answer:
    from spp_cli.models.upload import check_repository, size_of, upload
    from spp_cli.push import check_model, model_files

    repository, public, revision = given["repository"], given["public"], given["revision"]
    possible = (*WHOLE_MODELS, ARCHIVE)
    run, stage_named = run_and_stage(workspace_of(given), given["run"], possible, "model")
    named = stage_named or possible[0]
    packed = named == ARCHIVE
    stage = "merge" if packed else named
    check_repository(repository)
    token = _token() if given["yes"] else ""
    files = model_files(run, stage, repository, packed=packed)
    check_model(run, stage)
    sizes = {name: size_of(content) for name, content in files.items()}
    card = files[CARD]
    assert isinstance(card, bytes)
    document = {
        "repository": repository,
        "revision": revision or "main",
        "public": public,
        "run": run.name,
        "stage": named,
        "files": sizes,
        "card": card.decode(),
        "commit": None,
    }
    if given["yes"]:
        document["commit"] = upload(
            repository,
            files,
            token=token,
            public=public,
            revision=revision,
            message=f"Upload {named} of {run.name} with spp",
            reporter=reporter,
        )
        return Answer(document, f"pushed {len(files)} files: {document['commit']}")
    rows = [[name, tables.binary_size(size)] for name, size in sizes.items()]
    rows.append(["all", tables.binary_size(sum(sizes.values()))])
    seen_by = "public" if public else "private"
    text = [
        f"{CARD}:\n\n{card.decode()}",
        tables.table(["file", "size"], rows),
        f"This would go to {repository}, {seen_by}, revision {document['revision']}. "
        "Nothing was sent: add --yes to do it.",
    ]
    return Answer(document, "\n\n".join(text))


def _token() -> str:
    token = os.environ.get(_TOKEN, "").strip()
    if not token:
        from huggingface_hub.constants import ENDPOINT

        raise ConfigError(
            f"push needs a token of the hub in the environment, and {_TOKEN} is not set. "
            f"Make one with write access at {ENDPOINT}/settings/tokens, then: export {_TOKEN}=…"
        )
    return token


PUSH = Command(
    [
        argument(
            "run", f"{RUN_AND_STAGE}, or {ARCHIVE}, the archive of merge", metavar="RUN[/STAGE]"
        ),
        argument("repository", "Its name on the hub, OWNER/NAME", metavar="REPO_ID"),
        switch("yes", f"Do it; the token is that of ${_TOKEN}"),
        switch("public", "Everybody may see it; default: private"),
        option("revision", "Branch that it goes to; default: main", metavar="BRANCH"),
        WORKSPACE,
    ],
    _push,
)
