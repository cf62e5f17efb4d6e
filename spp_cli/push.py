"""What goes to the hub of a run's model, and whether it is still as its stage left it."""

from __future__ import annotations

from spp_cli.card import edited_card, model_card
from spp_cli.errors import CheckFailed, WorkspaceError
from spp_cli.fingerprint import folder_digest
from spp_cli.invocation import recorded_settings
from spp_cli.models.origin import CARD
from spp_cli.models.upload import Content
from spp_cli.publishing import ARCHIVE, is_result
from spp_cli.workspace import Run

__all__ = ["check_model", "model_files"]


def model_files(
    run: Run, stage: str, repository: str, *, packed: bool = False
) -> dict[str, Content]:
    """Return the files of a stage's model, or of its archive, by the names they get on the hub.

    Those are what the stage left for others to read, keep masks included, and a model card, as it
    is if somebody has edited it. A run's own records stay: they name folders of this machine, and
    the card says what they do.

    Raises:
        WorkspaceError: the stage is missing, damaged or stale, or has left no archive.
    """
    folder = run.require(stage, for_stage="push")
    manifest = run.manifest(stage)
    assert manifest is not None
    of_archive = f"{ARCHIVE}/"
    files: dict[str, Content] = {
        name.removeprefix(of_archive): folder / name
        for name in manifest.files
        if is_result(name) and name.startswith(of_archive) == packed
    }
    if not files:
        raise WorkspaceError(
            f"run {run.name} has no archive of its model. "
            f"Run: spp merge --run {run.name} --packed --force"
        )
    edited = None if packed else edited_card(run, stage)
    text = edited or model_card(run, stage, repository=repository, packed=packed)
    return {CARD: text.encode(), **files}


def check_model(run: Run, stage: str) -> None:
    """Read the whole model of a stage, its archive included, and refuse it if it was changed.

    Raises:
        CheckFailed: a pruned weight is not zero, or any file is not as the stage left it.
        ModelError: the checkpoint cannot be read.
    """
    from spp_cli.sparsity.verify import verify_folder  # not above: it imports torch

    folder, manifest = run.folder / stage, run.manifest(stage)
    assert manifest is not None
    trusted = bool(recorded_settings(run).get("model.trust_remote_code"))
    problem = verify_folder(folder, trust_remote_code=trusted).summary()
    if not problem:
        digest = folder_digest(folder, filter(is_result, manifest.files))
        if digest != manifest.output_digest:
            problem = "its files have another digest than is on record"
    if problem:
        raise CheckFailed(
            f"{folder}: {problem}. Nothing was sent. "
            f"Make it again: spp {stage} --run {run.name} --force"
        )
