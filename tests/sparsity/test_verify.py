"""The check of a folder finds what is broken, and names it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_model
from safetensors.torch import load_file, save_file

from spp_cli.config import SppConfig
from spp_cli.progress import Silent
from spp_cli.sparsity.masks import FILE_NAME
from spp_cli.sparsity.verify import RECORD, verify_folder
from spp_cli.stages import prune
from spp_cli.stages.stage import Sources

LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture
def pruned(tmp_path: Path):
    """Return a maker of pruned folders."""

    def make(**settings: object) -> Path:
        dense = make_model("llama", tmp_path / "dense")
        (tmp_path / "pruned").mkdir()
        config = SppConfig.model_validate({"prune": {"method": "magnitude", **settings}})
        prune.run(config, Sources(dense, False), tmp_path / "pruned", Silent())
        return tmp_path / "pruned"

    return make


def change_weight(folder: Path, change) -> None:
    """Let ``change`` alter the weight of LAYER in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors[f"{LAYER}.weight"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_pruned_folder_holds_what_was_recorded(pruned):
    report = verify_folder(pruned(pattern="2:4"))
    assert report.ok
    assert (report.pattern, report.masks, report.sparsity) == ("2:4", True, 0.5)
    assert len(report.layers) == 14
    assert report.summary() == ""


def test_a_dense_folder_is_measured_and_nothing_is_wrong_with_it(tmp_path):
    report = verify_folder(make_model("llama", tmp_path / "dense"))
    assert report.ok
    assert (report.pattern, report.masks, report.sparsity) == (None, False, 0.0)


def test_a_filled_weight_is_counted_and_its_layer_named(pruned):
    folder = pruned(sparsity=0.5)
    change_weight(folder, lambda weight: weight[weight == 0].fill_(1))  # a copy: no change
    assert verify_folder(folder).ok

    def fill_two(weight):
        rows, columns = (weight == 0).nonzero()[:2].T
        weight[rows, columns] = 1.0

    change_weight(folder, fill_two)
    report = verify_folder(folder)
    assert report.problems == (f"{LAYER}: 2 pruned weights are not zero",)
    assert [layer.filled for layer in report.layers if layer.name == LAYER] == [2]


def test_a_pattern_can_be_asked_of_a_folder_that_spp_never_saw(pruned):
    folder = pruned(pattern="2:4")
    for name in (FILE_NAME, RECORD):
        (folder / name).unlink()
    assert verify_folder(folder, "2:4").ok
    report = verify_folder(folder, "1:4")
    assert not report.ok
    assert report.summary().endswith("groups violate 1:4; and 13 more like it, see the table")


def test_an_excluded_layer_is_held_to_a_pattern_only_if_that_is_asked(pruned):
    folder = pruned(pattern="2:4", exclude=["up_proj"])
    assert verify_folder(folder).ok
    report = verify_folder(folder, "2:4")
    assert {problem.split(":")[0] for problem in report.problems} == {
        "model.layers.0.mlp.up_proj",
        LAYER,
    }


def test_masks_that_were_changed_are_noticed(pruned):
    folder = pruned(pattern="2:4")
    content = bytearray((folder / FILE_NAME).read_bytes())
    content[-1] ^= 0b11
    (folder / FILE_NAME).write_bytes(content)
    assert any("digest is not the one recorded" in line for line in verify_folder(folder).problems)
