"""The model card of a stage: from the records of its run, as a text or written beside the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spp_cli.comparability import recovered
from spp_cli.comparison import MADE_BY, evaluation_of, evaluations
from spp_cli.errors import WorkspaceError
from spp_cli.fingerprint import sha256, write_text
from spp_cli.invocation import recorded_settings
from spp_cli.models.origin import CARD, licence_files
from spp_cli.progress import Reporter
from spp_cli.publishing import CONFIG
from spp_cli.report import facts
from spp_cli.reporting.card import card
from spp_cli.reporting.story import model_name
from spp_cli.workspace import Run

__all__ = ["edited_card", "model_card", "refresh_card", "write_card"]

# The last line of a card: by it spp knows its own words from those of the user.
_SIGNED = "<!-- written by spp card, and anew while nobody edits it: {digest} -->\n"
# What leads to a file on this machine concerns nobody else; its name may.
_FOLDERS = re.compile(r"(?<!\S)(?:~|\.{1,2})?/(?:[^/,]*/)*")
# A data set of the hub, as the names of sources have it: "96 of c4, 32 of owner/name (en, train)".
_DATA_SET = re.compile(r"(?:^|, )(?:\d+ of )?(c4|wikitext2|[\w-][\w.-]*/[\w-][\w.-]*)(?=$|,| \()")
_NAMED = {"c4": "allenai/c4", "wikitext2": "Salesforce/wikitext"}


def model_card(run: Run, stage: str, *, repository: str | None = None, packed: bool = False) -> str:
    """Return the card of the model that ``stage`` (prune or merge) of a run has made.

    ``repository`` is its name on the hub, if it goes there; ``packed``: the card is of its archive.

    Raises:
        WorkspaceError: the stage is missing, damaged or stale.
        ConfigError: a config.yaml cannot be read.
    """
    folder = run.require(stage, for_stage="a model card")
    found = {name: run.intact_manifest(name) for name in MADE_BY[stage]}
    records = {name: manifest.model_dump() for name, manifest in found.items() if manifest}
    manifests = _without_folders(records)
    results = _results(run, stage, manifests)
    sections = ("model", "seed", *MADE_BY[stage], *(["eval"] if results else []))
    settings = _without_folders(recorded_settings(run).only(sections).values)
    if "model" not in settings:  # of config.yaml, which is no part of a stage's output
        raise WorkspaceError(
            f"{folder / CONFIG} does not name the model; it has changed since it was written. "
            f"Make it again: spp {stage} --run {run.name} --force"
        )
    origin = manifests.get("prune", {}).get("metrics", {}).get("origin") or {}
    text = card(
        {
            "title": repository.rpartition("/")[2] if repository else run.name,
            "base": origin.get("hub_id") or model_name(settings["model"]["path"]),
            "origin": origin,
            "licences": [file.name for file in licence_files(folder)],
            "run": run.name,
            "stage": stage,
            "packed": packed,
            "repository": repository,
            "settings": settings,
            "manifests": manifests,
            "datasets": _data_sets(records),
            "results": results,
            "facts": facts(records),
        }
    )
    return text + _SIGNED.format(digest=sha256(text)[:16])


def write_card(run: Run, stage: str, *, force: bool = False) -> Path:
    """Write the card of a stage into its folder, and return where it is.

    It is not part of the stage's output: no digest changes with it.

    Raises:
        WorkspaceError: the stage is missing, damaged or stale; or somebody has edited its card, and
            not ``force``.
    """
    text, path = model_card(run, stage), run.folder / stage / CARD
    if edited_card(run, stage) is not None and not force:
        raise WorkspaceError(f"{path} was edited by hand. Add --force to write it anew")
    write_text(path, text)
    return path


def refresh_card(run: Run, reporter: Reporter) -> None:
    """Write the card of the merged model anew if it is up to date and nobody has edited its card.

    Raises:
        WorkspaceError: the card cannot be written.
    """
    if run.state("merge") != "done":
        return
    if edited_card(run, "merge") is None:
        write_card(run, "merge")
    else:
        reporter.say(f"{run.folder / 'merge' / CARD} was edited by hand, and stays as it is")


def edited_card(run: Run, stage: str) -> str | None:
    """Return the card in the folder of a stage if it is not as spp wrote it; None if it is."""
    try:
        text = (run.folder / stage / CARD).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    body, _, _ = text.rpartition("<!--")
    return None if text == body + _SIGNED.format(digest=sha256(body)[:16]) else text


def _results(run: Run, stage: str, manifests: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what was measured of this very model and of those it was made from, as results.json.

    None if nothing was but the dense model.
    """
    pruned = manifests.get("prune", {})
    dense = pruned.get("settings", {}).get("model", {}).get("digest")
    names = [
        row["stage"]
        for row in evaluations(run)
        if row["stage"] in ("dense", *MADE_BY[stage])
        and not row["outdated"]
        and (row["stage"] != "dense" or row["model_digest"] == dense)
    ]
    if not names or names == ["dense"]:
        return None
    document = evaluation_of(run)
    assert document is not None
    models = {name: document["models"][name] for name in names}
    return _without_folders({"models": models, "recovered": recovered(models)})


def _data_sets(manifests: Mapping[str, Any]) -> list[str]:
    """Return the ids of the hub's data sets that the stages have read."""
    found: dict[str, None] = {}
    for stage, read, kept in (
        ("prune", "calibration", "calibration"),
        ("finetune", "data", "train"),
    ):
        manifest = manifests.get(stage, {})
        source = (manifest.get("metrics", {}).get(kept) or {}).get("source", "")
        names = _DATA_SET.findall(source)
        if read in manifest.get("inputs", {}):  # what has a digest is on this machine
            names = [name for name in names if name in _NAMED]
        found |= dict.fromkeys(_NAMED.get(name, name) for name in names)
    return list(found)


def _without_folders(value: Any) -> Any:
    """Return values with what stands before the last name of a path on this machine left out."""
    if isinstance(value, Mapping):
        return {_without_folders(key): _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value
