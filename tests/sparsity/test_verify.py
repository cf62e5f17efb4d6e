"""The check of a folder finds what is broken, and names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_model
from safetensors.torch import load_file, save_file

from spp_cli.config import SppConfig
from spp_cli.errors import ModelError
from spp_cli.progress import Silent
from spp_cli.sparsity.masks import FILE_NAME
from spp_cli.sparsity.verify import RECORD, recorded_pattern, verify_folder
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


def test_without_masks_the_record_still_says_how_much_may_stay(pruned):
    folder = pruned(sparsity=0.6)
    (folder / FILE_NAME).unlink()
    report = verify_folder(folder)
    assert (report.ok, report.pattern, report.masks) == (True, "unstructured 0.6", False)
    change_weight(folder, lambda weight: weight.masked_fill_(weight == 0, 1.0))
    removed = 96 * 64 * 6 // 10
    assert verify_folder(folder).problems == (f"{LAYER}: {removed} pruned weights are not zero",)


def test_without_masks_the_recorded_pattern_still_holds_what_was_pruned(pruned):
    folder = pruned(pattern="2:4", exclude=["down_proj"])
    (folder / FILE_NAME).unlink()
    assert verify_folder(folder).ok

    def move_one(weight):  # as many zeros as before, but three of the first four are none
        first, second = weight[0, :4], weight[0, 4:8]
        first[(first == 0).nonzero()[0]] = 1.0
        second[second.nonzero()[0]] = 0.0

    change_weight(folder, move_one)
    assert verify_folder(folder).problems == (f"{LAYER}: 1 groups violate 2:4",)


def test_layers_that_lose_unlike_shares_are_held_to_their_own(pruned):
    folder = pruned(sparsity=0.6, allocation={"*.mlp.*": 0.7})
    report = verify_folder(folder)
    assert (report.ok, report.pattern) == (True, "unstructured 0.6")
    assert report.sparsity == pytest.approx(0.6, abs=1e-3)
    (folder / FILE_NAME).unlink()
    assert verify_folder(folder).ok

    def fill_one(weight):  # the layer is still sparser than the model
        row, column = (weight == 0).nonzero()[0]
        weight[row, column] = 1.0

    change_weight(folder, fill_one)
    assert verify_folder(folder).problems == (f"{LAYER}: 1 pruned weights are not zero",)


def test_sparsity_is_counted_to_the_element(pruned):
    report = verify_folder(pruned(sparsity=0.6))
    for layer in report.layers:
        rows, columns = layer.shape
        removed = rows * columns * 6 // 10  # magnitude ranks a whole layer
        assert layer.sparsity == removed / (rows * columns)


def test_masks_of_another_pruning_are_noticed(pruned):
    folder = pruned(pattern="2:4")
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, "mask_digest": "0" * 64}))
    problems = (f"{FILE_NAME}: these are not the masks that {RECORD} was written for",)
    assert verify_folder(folder).problems == problems


def test_a_pruned_layer_that_the_model_has_not_is_named(pruned):
    folder = pruned(pattern="2:4")
    (folder / FILE_NAME).unlink()
    record = json.loads((folder / RECORD).read_text())
    record["density"]["model.layers.9.mlp.up_proj"] = 0.5
    (folder / RECORD).write_text(json.dumps(record))
    (problem,) = verify_folder(folder).problems
    assert problem.startswith("model.layers.9.mlp.up_proj was pruned, says the record, and is no")


@pytest.mark.parametrize(
    "change",
    [
        {"pattern": "5:4"},
        {"pattern": "unstructured"},
        {"pattern": None},
        {"density": []},
        {"density": {"a": "much"}},
    ],
)
def test_a_record_that_is_damaged_is_named_on_one_line(change, pruned):
    folder = pruned(pattern="2:4")
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, **change}))
    with pytest.raises(ModelError, match=r"spp_sparsity\.json is corrupt: .*Copy it anew") as error:
        verify_folder(folder)
    assert "\n" not in str(error.value)


def test_the_recorded_pattern_is_the_one_that_was_asked_for(pruned):
    folder = pruned(sparsity=0.123)  # of 4096 weights ⌊503.8⌋ go, which is less
    assert str(recorded_pattern(folder)) == "unstructured 0.123"


def test_a_width_that_does_not_divide_violates_in_every_row(tmp_path):
    report = verify_folder(make_model("llama", tmp_path / "dense"), "2:5")
    assert [layer.violations for layer in report.layers] == [
        layer.shape[0] for layer in report.layers
    ]


def test_masks_that_were_changed_are_noticed(pruned):
    folder = pruned(pattern="2:4")
    content = bytearray((folder / FILE_NAME).read_bytes())
    content[-1] ^= 0b11
    (folder / FILE_NAME).write_bytes(content)
    assert any("digest is not the one recorded" in line for line in verify_folder(folder).problems)
