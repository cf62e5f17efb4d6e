"""spp diff: nothing between a run and itself, and the likeliest cause first between two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import change_results
from typer.testing import CliRunner

from spp_cli.cli import app
from spp_cli.difference import KINDS, Side, diff
from spp_cli.sparsity.masks import KeepMasks
from spp_cli.workspace import Workspace


@pytest.fixture
def workspace(side_by_side: Workspace, tmp_path: Path) -> Workspace:
    """A copy with a second run like the first, ``again``, to be changed."""
    shutil.copytree(side_by_side.root, tmp_path / "runs")
    shutil.copytree(side_by_side.root / "wanda", tmp_path / "runs" / "again")
    return Workspace(tmp_path / "runs")


def between(workspace: Workspace, a: str, b: str, *stages: str) -> dict[str, Any]:
    one, other = stages or (None, None)
    return diff(Side(workspace.run(a), one), Side(workspace.run(b), other))


def change(workspace: Workspace, stage: str, **changes: Any) -> None:
    """Change the record of a stage of ``again``; "__" stands for the dot of a key."""
    path = workspace.root / "again" / stage / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, value in changes.items():
        *sections, last = key.split("__")
        part = manifest
        for name in sections:
            part = part[name]
        part[last] = value
    path.write_text(json.dumps({**manifest, "sha256": None}))


@pytest.mark.parametrize("name", ["wanda", "magnitude"])
def test_a_run_does_not_differ_from_itself(side_by_side: Workspace, name: str) -> None:
    document = between(side_by_side, name, name)
    assert document["differences"] == document["results"] == []
    assert document["masks"] == {"same": True}


def test_nor_from_one_that_was_made_in_the_same_way(workspace: Workspace) -> None:
    document = between(workspace, "wanda", "again")
    assert document["differences"] == document["results"] == []


def test_the_other_way_round_it_says_the_same(side_by_side: Workspace) -> None:
    there = between(side_by_side, "wanda", "magnitude")
    back = between(side_by_side, "magnitude", "wanda")
    turned = {"a": "b", "b": "a"}
    swapped = [{turned.get(k, k): v for k, v in entry.items()} for entry in back["differences"]]
    assert sorted(map(sorted_json, swapped)) == sorted(map(sorted_json, there["differences"]))
    for key in ("common", "jaccard", "by_chance"):
        assert there["masks"]["overall"][key] == back["masks"]["overall"][key]


def sorted_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def test_what_explains_most_comes_first(workspace: Workspace) -> None:
    change(
        workspace, "prune", settings__prune__sparsity=0.6, versions__torch="1.0", platform="Mars"
    )
    change(workspace, "prune", settings__model__digest="ab" * 8)
    change(workspace, "prune", settings__prune__calibration__samples=3)
    change(workspace, "prune", metrics__calibration__digest="cd" * 32)
    change(workspace, "finetune", settings__finetune__adapter__r=2, inputs__data="ef" * 32, seed=7)
    change(workspace, "merge", settings__merge__check_length=9)
    change_results(
        workspace.run("again"),
        lambda found: found["models"]["merge"]["results"]["perplexity@32"].update(digest="12" * 32),
    )
    found = between(workspace, "wanda", "again")["differences"]
    told = [(entry["kind"], entry["stage"], entry["key"]) for entry in found]
    assert told == [
        ("model", "prune", "model.digest"),
        ("evaluation", "merge", "perplexity@32.digest"),
        ("pruning", "prune", "prune.sparsity"),
        ("calibration", "prune", "prune.calibration.samples"),
        ("calibration", "prune", "calibration, as done: digest"),
        ("training", "finetune", "finetune.adapter.r"),
        ("training", "finetune", "digest of data"),
        ("seed", "finetune", "seed"),
        ("versions", "prune", "torch"),
        ("versions", "prune", "platform"),
        ("other", "merge", "merge.check_length"),
    ]
    assert [KINDS.index(kind) for kind, _, _ in told] == sorted(KINDS.index(k) for k, _, _ in told)


def test_what_only_one_side_has_is_not_set_on_the_other(side_by_side: Workspace) -> None:
    found = between(side_by_side, "wanda", "magnitude")["differences"]
    by_key = {entry["key"]: entry for entry in found}
    assert by_key["finetune"]["a"] == "done"
    assert "b" not in by_key["finetune"]
    assert by_key["prune.method.variant"]["a"] == "row"
    assert "b" not in by_key["prune.method.variant"]
    assert by_key["calibration, as done: samples"]["a"] == 2


def test_masks_are_counted_layer_by_layer_and_block_by_block(side_by_side: Workspace) -> None:
    masks = between(side_by_side, "wanda", "magnitude")["masks"]
    a, b = (KeepMasks(side_by_side.root / name / "prune") for name in ("wanda", "magnitude"))
    for layer in masks["layers"]:
        both = int((a[layer["name"]] & b[layer["name"]]).sum())
        either = int((a[layer["name"]] | b[layer["name"]]).sum())
        assert (layer["kept_both"], layer["jaccard"]) == (both, both / either)
    assert [layer["name"] for layer in masks["layers"]] == list(a)
    assert len(masks["blocks"]) == 2
    for key in ("size", "kept_a", "kept_b", "kept_both"):
        assert sum(part[key] for part in masks["blocks"]) == masks["overall"][key]
        assert sum(part[key] for part in masks["layers"]) == masks["overall"][key]


def test_masks_that_cannot_be_read_hide_nothing_else(workspace: Workspace) -> None:
    path = workspace.root / "magnitude" / "prune" / "keep_masks.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    document = between(workspace, "wanda", "magnitude")
    assert "is corrupt" in document["masks"]["problem"]
    assert any(entry["kind"] == "pruning" for entry in document["differences"])


def test_two_stages_of_one_run_share_their_mask_and_differ_in_what_came_after(
    side_by_side: Workspace,
) -> None:
    document = between(side_by_side, "wanda", "wanda", "prune", "merge")
    assert [entry["key"] for entry in document["differences"]] == ["finetune", "merge"]
    assert document["masks"] == {"same": True}
    assert {result["stage"] for result in document["results"]} == {"prune / merge"}


@pytest.fixture
def spp(side_by_side: Workspace, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run ``spp diff``; the result has exit_code, stdout and stderr."""
    monkeypatch.setenv("SPP_WORKSPACE", str(side_by_side.root))
    return lambda *arguments: CliRunner().invoke(app, ["diff", *arguments])


def test_the_text_has_kinds_blocks_and_the_layers_least_alike(spp: Any) -> None:
    text = spp("wanda", "magnitude").stdout
    titles = [part.split("  ")[0].split(":")[0] for part in text.split("\n\n")]
    assert titles == [
        "evaluation",
        "pruning",
        "calibration",
        "training",
        "the rest",
        "masks",
        "block",
        "least alike",
        "not compared, as measured differently",
    ]
    assert text.count("_proj ") == 5
    assert spp("wanda", "magnitude", "--layers").stdout.count("_proj ") == 14
    assert spp("wanda", "wanda").stdout == "wanda and wanda do not differ\n"


def test_the_document_is_the_same_whatever_is_shown(spp: Any, side_by_side: Workspace) -> None:
    document = json.loads(spp("wanda", "magnitude/prune", "--json").stdout)
    assert document == between(side_by_side, "wanda", "magnitude", "prune", "prune")


@pytest.mark.parametrize(
    ("sides", "said"),
    [
        (("wanda", "nonesuch"), "has no run nonesuch. Runs there: "),
        (("wanda/pruned", "wanda"), "names no stage of run wanda; must be one of prune, finetune"),
        (("wanda/merge", "magnitude"), "has no merge to compare. Run: spp merge --run magnitude"),
    ],
)
def test_a_mistake_is_told_in_one_line(spp: Any, sides: tuple[str, str], said: str) -> None:
    done = spp(*sides)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
