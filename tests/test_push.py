"""spp push: nothing before --yes; then what was made and nothing else, whole, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.mistakes.row import filled, flipped, tensor_changed
from hub import READER, WRITER, Repository, WritableHub, writable_hub
from huggingface_hub import constants
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from spp_cli.cli import app
from spp_cli.models.origin import front_matter
from spp_cli.workspace import Workspace

NAME = "owner/sparse"
MERGED = {
    *("README.md", "config.json", "generation_config.json", "model.safetensors"),
    *("keep_masks.safetensors", "spp_sparsity.json", "tokenizer.json", "tokenizer_config.json"),
}


@pytest.fixture
def workspace(side_by_side: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workspace; its run wanda has all stages, magnitude is only pruned."""
    root = tmp_path / "workspace"
    shutil.copytree(side_by_side.root, root)
    monkeypatch.setenv("SPP_WORKSPACE", str(root))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return root


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[WritableHub]]:
    with writable_hub(tmp_path / "cache", monkeypatch) as hub:
        yield hub


def push(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["push", *arguments, "--json"])
    assert done.exit_code == code, done.stderr
    for token in (WRITER, READER):
        assert token not in done.output
    return json.loads(done.stdout)


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(3, 23)[None]).logits


def test_what_the_hub_has_loads_in_plain_transformers_with_the_same_logits(
    workspace: Path, hub: type[WritableHub], tmp_path: Path
) -> None:
    document = push("wanda", NAME, "--yes")
    assert document["commit"] == f"{constants.ENDPOINT}/{NAME}/commit/{'1' * 40}"
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.messages == ["Upload merge of wanda with spp"]
    received = repository.write(tmp_path / "received")
    assert {path.name for path in received.iterdir()} == MERGED == set(document["files"])
    assert torch.equal(logits(received), logits(workspace / "wanda/merge"))
    verified = CliRunner().invoke(app, ["verify", str(received), "--json"])
    assert json.loads(verified.stdout)["masks"]
    assert verified.exit_code == 0
    card = (received / "README.md").read_text()
    assert f'from_pretrained("{NAME}"' in card
    assert "perplexity@32" in card


def test_the_archive_comes_back_bit_for_bit(
    workspace: Path, hub: type[WritableHub], tmp_path: Path
) -> None:
    push("wanda/packed", NAME, "--yes")
    received = hub.repositories[NAME].write(tmp_path / "received")
    card = (received / "README.md").read_text()
    assert "spp unpack archive model" in card
    assert "library_name" not in front_matter(received / "README.md")
    done = CliRunner().invoke(app, ["unpack", str(received), str(tmp_path / "back")])
    assert done.exit_code == 0, done.stderr
    for name in MERGED - {"README.md"}:
        content = (workspace / "wanda/merge" / name).read_bytes()
        assert (tmp_path / "back" / name).read_bytes() == content


def test_a_pruned_model_goes_as_it_is(
    workspace: Path, hub: type[WritableHub], tmp_path: Path
) -> None:
    push("magnitude/prune", NAME, "--yes")
    received = hub.repositories[NAME].write(tmp_path / "received")
    assert {path.name for path in received.iterdir()} == MERGED
    assert "2:4" in front_matter(received / "README.md")["tags"]
    assert torch.equal(logits(received), logits(workspace / "magnitude/prune"))


def test_without_yes_all_is_shown_and_nothing_is_asked_of_the_hub(
    workspace: Path, hub: type[WritableHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    document = push("wanda", NAME)
    assert set(document["files"]) == MERGED
    assert document["commit"] is None
    assert not document["public"]
    for name, size in document["files"].items():
        if name != "README.md":
            assert size == (workspace / "wanda/merge" / name).stat().st_size
    shown = CliRunner().invoke(app, ["push", "wanda", NAME]).stdout
    assert document["card"] in shown
    assert "model.safetensors" in shown
    assert f"This would go to {NAME}, private, revision main. Nothing was sent" in shown
    assert hub.sent == []


def test_public_is_said_for_each_repository_and_never_changed(
    workspace: Path, hub: type[WritableHub]
) -> None:
    push("wanda", NAME, "--yes", "--public")
    assert not hub.repositories[NAME].private
    says = push("wanda", NAME, "--yes", code=2)["error"]
    assert says.startswith(f"push to {NAME}: it is there already, and public. Nothing was sent")
    push("wanda", NAME, "--yes", "--public")
    hub.repositories["owner/own"] = Repository(private=True)
    says = push("wanda", "owner/own", "--yes", "--public", code=2)["error"]
    assert says.startswith("push to owner/own: it is there already, and private. Nothing was sent")
    assert hub.repositories["owner/own"].branches == {"main": {}}


def test_a_revision_is_a_branch_of_its_own(workspace: Path, hub: type[WritableHub]) -> None:
    push("wanda/prune", NAME, "--yes")
    before = dict(hub.repositories[NAME].branches["main"])
    for _ in range(2):
        push("wanda", NAME, "--yes", "--revision", "merged")
    branches = hub.repositories[NAME].branches
    assert branches["main"] == before
    weights = (workspace / "wanda/merge/model.safetensors").read_bytes()
    assert branches["merged"]["model.safetensors"] == weights


def test_weights_of_an_earlier_push_do_not_stay_beside_the_new_ones(
    workspace: Path, hub: type[WritableHub]
) -> None:
    hub.repositories[NAME] = Repository(private=True)
    earlier = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt")
    hub.repositories[NAME].branches["main"] = dict.fromkeys(earlier, b"earlier")
    push("wanda", NAME, "--yes")
    assert set(hub.repositories[NAME].branches["main"]) == {*MERGED, "notes.txt"}


def test_a_push_that_was_cut_off_sends_only_what_is_missing(
    workspace: Path, hub: type[WritableHub]
) -> None:
    hub.refuse_large_after = 1
    says = push("wanda", NAME, "--yes", code=2)["error"]
    assert says.endswith("Run the same command again: what has arrived is not sent twice")
    assert hub.repositories[NAME].branches["main"] == {}
    hub.refuse_large_after = 1000
    before = len([each for each in hub.sent if each.startswith("PUT")])
    push("wanda", NAME, "--yes")
    sent = [each for each in hub.sent if each.startswith("PUT")]
    assert len(sent) == before + 1
    assert len(hub.large) == 2
    assert set(hub.repositories[NAME].branches["main"]) == MERGED


LAYER = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("run", ["wanda", "wanda/packed"])
def test_a_model_whose_zeros_are_filled_is_refused(
    workspace: Path, hub: type[WritableHub], run: str
) -> None:
    tensor_changed(str(workspace / "wanda/merge/model.safetensors"), f"{LAYER}.weight", filled)()
    says = push(run, NAME, "--yes", code=1)["error"]
    assert f"{LAYER}: 1 pruned weights are not zero. Nothing was sent" in says
    assert hub.sent == []


@pytest.mark.parametrize(
    ("run", "file"),
    [("wanda", "model.safetensors"), ("wanda/packed", "packed/model.packed.safetensors")],
)
def test_a_model_that_is_not_as_its_stage_left_it_is_refused(
    workspace: Path, hub: type[WritableHub], run: str, file: str
) -> None:
    flipped(str(workspace / "wanda/merge" / file))()
    says = push(run, NAME, "--yes", code=1)["error"]
    assert "Nothing was sent. Make it again: spp merge --run wanda --force" in says
    assert hub.sent == []


def test_a_card_that_somebody_has_edited_goes_as_it_is(
    workspace: Path, hub: type[WritableHub]
) -> None:
    (workspace / "wanda/merge/README.md").write_text("My own words.\n")
    push("wanda", NAME, "--yes")
    assert hub.repositories[NAME].branches["main"]["README.md"] == b"My own words.\n"


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "push needs a token of the hub in the environment, and HF_TOKEN is not set."),
        ("hf_mistyped", f"push to {NAME}: the hub does not accept HF_TOKEN. Make one at http"),
        (READER, f"push to {NAME}: the owner of HF_TOKEN, or the token itself, may not write"),
    ],
)
def test_a_token_that_does_not_do_is_told_in_one_line(
    workspace: Path, hub: type[WritableHub], monkeypatch: pytest.MonkeyPatch, token: str, says: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    error = push("wanda", NAME, "--yes", code=2)["error"]
    assert error.startswith(says)
    assert "\n" not in error
    assert hub.repositories == {}


def test_without_a_network_it_says_so_at_once(
    workspace: Path, hub: type[WritableHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    error = push("wanda", NAME, "--yes", code=2)["error"]
    assert error.startswith(f"push to {NAME}: no connection to the hub. Nothing was sent.")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wanda", "sparse"], "'sparse' is no repository of the hub; must be OWNER/NAME"),
        (["wanda", "owner/a--b"], "'owner/a--b' is no repository of the hub; must be OWNER/NAME"),
        (["wanda/finetune", NAME], "wanda/finetune names no model of run wanda; must be one of"),
        (["magnitude", NAME], "push needs a merged model, and run magnitude has none."),
        (["nowhere", NAME], "…/workspace has no run nowhere. Runs there: "),
    ],
)
def test_a_mistake_is_told_before_anything_is_read(
    workspace: Path, arguments: list[str], says: str
) -> None:
    error = push(*arguments, code=2)["error"]
    assert says.removeprefix("…") in error
    assert "\n" not in error


def test_a_run_without_an_archive_says_how_to_make_one(workspace: Path) -> None:
    path = workspace / "wanda/merge/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {name: size for name, size in manifest["files"].items() if "/" not in name}
    path.write_text(json.dumps({**manifest, "sha256": None}))
    says = push("wanda/packed", NAME, code=2)["error"]
    assert says.endswith("Run: spp merge --run wanda --packed --force")
