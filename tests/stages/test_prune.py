"""spp prune: one block in memory at a time, and a kill costs one block at most."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import add_tokenizer, make_model, store_fused
from transformers import AutoModelForCausalLM

from spp_cli.allocation.owl import OWL
from spp_cli.config import SppConfig
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.decoder import Decoder, Linear
from spp_cli.models.loading import empty_model, load_model
from spp_cli.models.rewriting import CheckpointRewriter
from spp_cli.models.streaming import ResidentModel, StreamedModel, open_model
from spp_cli.progress import Silent
from spp_cli.pruning.statistics import InputNorm
from spp_cli.sparsity.masks import FILE_NAME, KeepMasks
from spp_cli.stages import prune
from spp_cli.stages.block_records import BlockRecords
from spp_cli.stages.stage import Result, Sources

BLOCKS = 4


class Talk(Silent):
    """A reporter that keeps what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bfloat16 Llama of four blocks with the embedded tokenizer."""
    folder = tmp_path_factory.mktemp("dense") / "model"
    make_model("llama", folder, torch.bfloat16, vocab_size=4096, num_hidden_layers=BLOCKS)
    add_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=["mixtral", "granitemoe", "qwen3_moe in one tensor"])
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts: stored one by one, all in one tensor, and so in another's names."""
    family, _, fused = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("mixture") / "model"
    make_model(family, folder, torch.bfloat16, vocab_size=4096)
    if fused:
        store_fused(folder)
    add_tokenizer(folder)
    return folder


def run(dense: Path, target: Path, reporter: Silent | None = None, **changes: object) -> Result:
    target.mkdir(exist_ok=True)
    calibration = {"samples": 5, "sequence_length": 32, "batch_size": 2}
    settings = {"method": "wanda", "sparsity": 0.6, "calibration": calibration, **changes}
    config = SppConfig.model_validate({"prune": settings})
    return prune.run(config, Sources(dense, True), target, reporter or Silent())


def content(folder: Path) -> dict[str, bytes]:
    names = ("model.safetensors", FILE_NAME, "spp_sparsity.json", "config.json")
    return {name: (folder / name).read_bytes() for name in names}


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize(
    ("method", "order"),
    [
        ("wanda", "two-pass"),
        ("wanda", "one-pass"),
        ("sparsegpt", "one-pass"),
        ("fista", "one-pass"),
        ("magnitude", "auto"),
    ],
)
@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.parametrize("moment", ["weights", "record"])
def test_a_killed_pruning_goes_on_to_the_same_result_bit_for_bit(
    method, order, block, moment, dense, tmp_path, monkeypatch
):
    run(dense, tmp_path / "whole", method=method, order=order)
    owner, name = {
        "weights": (CheckpointRewriter, "begin"),
        "record": (BlockRecords, "begin"),
    }[moment]
    original = getattr(owner, name)

    def dying(self, index, *arguments):
        if index == block:
            raise Killed
        return original(self, index, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            run(dense, tmp_path / "cut", method=method, order=order)
    talk = Talk()
    result = run(dense, tmp_path / "cut", talk, method=method, order=order)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert len(result.metrics["layers"]) == BLOCKS * 7
    went_on = [line for line in talk.said if line.startswith("going on")]
    assert went_on == ([f"going on after block {block} of {BLOCKS}"] if block else [])


def test_a_killed_pruning_goes_on_in_the_order_it_began_with(dense, tmp_path, monkeypatch):
    original = BlockRecords.begin

    def dying(self, index, *arguments):
        if index == 1:
            raise Killed
        return original(self, index, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BlockRecords, "begin", dying)
        with pytest.raises(Killed):
            run(dense, tmp_path / "cut", sparsity=0.5)
    with monkeypatch.context() as patch:  # memory has become scarce
        patch.setattr(prune, "choose_order", lambda *_: "two-pass")
        assert run(dense, tmp_path / "cut", sparsity=0.5).metrics["order"] == "one-pass"
    run(dense, tmp_path / "whole", sparsity=0.5, order="one-pass")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.parametrize("block", [None, 0, 2])
def test_a_killed_pruning_goes_on_with_the_ratios_it_began_with(
    block, dense, tmp_path, monkeypatch
):
    whole = run(dense, tmp_path / "whole", allocation="owl")

    def dying(self, index, *arguments):
        if block is None or index == block:
            raise Killed
        return original(self, index, *arguments)

    owner, name = (BlockRecords, "begin") if block is not None else (InputNorm, "norm")
    original = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying if block is not None else lambda self: dying(self, 0))
        with pytest.raises(Killed):
            run(dense, tmp_path / "cut", allocation="owl")
    with monkeypatch.context() as patch:
        if block is not None:  # measured before the kill, and never again: this would fail
            patch.setattr(OWL, "allocate", None)
        result = run(dense, tmp_path / "cut", allocation="owl")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert result.metrics == whole.metrics


def test_ratios_that_were_damaged_on_disk_are_found_anew(dense, tmp_path, monkeypatch):
    run(dense, tmp_path / "whole", allocation="owl")
    (tmp_path / "cut/.resume").mkdir(parents=True)
    (tmp_path / "cut/.resume/allocation.json").write_text('{"ratios": ')
    run(dense, tmp_path / "cut", allocation="owl")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "magnitude"])
@pytest.mark.parametrize("allocation", ["owl", "sensitivity", {"*.mlp.*": 0.7, "layers.1.*": 0.3}])
@pytest.mark.parametrize("sparsity", [0.55, 0.6])
def test_the_overall_sparsity_is_exact_however_it_is_shared_out(
    method, allocation, sparsity, dense, tmp_path
):
    talk = Talk()
    result = run(
        dense, tmp_path / "a", talk, method=method, allocation=allocation, sparsity=sparsity
    )
    layers = result.metrics["layers"]
    sizes = {name: linear.weight.numel() for name, linear in linears_of(dense).items()}
    targets = sum(layers[name]["target"] * sizes[name] for name in sizes)
    assert targets / sum(sizes.values()) == pytest.approx(sparsity, abs=1e-9)
    # Half a column of the tallest layer, 96 rows; SparseGPT rounds down in each of its blocks.
    assert abs(result.metrics["sparsity"] - sparsity) * sum(sizes.values()) <= 48 + len(sizes)
    for name, linear in linears_of(dense).items():
        off = layers[name]["sparsity"] - layers[name]["target"]
        assert abs(off) <= 1 / linear.in_features + 1e-9
    described = result.metrics["allocation"]
    assert list(described["blocks"]) == [f"model.layers.{block}" for block in range(BLOCKS)]
    (line,) = [line for line in talk.said if line.startswith("allocation")]
    assert described["name"] in line


def test_under_owl_all_linears_of_a_block_are_asked_for_its_ratio(dense, tmp_path):
    metrics = run(dense, tmp_path / "a", allocation={"name": "owl", "width": 0.2}).metrics
    blocks = metrics["allocation"]["blocks"]
    assert max(blocks.values()) - min(blocks.values()) == pytest.approx(0.4)
    for name, layer in metrics["layers"].items():
        path = ".".join(name.split(".")[:3])
        assert layer["target"] == pytest.approx(blocks[path], abs=1e-12)


def test_uniform_rounds_down_as_the_published_methods_do(dense, tmp_path):
    metrics = run(dense, tmp_path / "a", sparsity=0.6).metrics
    assert metrics["allocation"]["name"] == "uniform"
    for name, linear in linears_of(dense).items():
        width = linear.in_features
        layer = metrics["layers"][name]
        assert (layer["target"], layer["sparsity"]) == (0.6, 6 * width // 10 / width)


@pytest.mark.parametrize(
    ("method", "known"), [("wanda", "norms"), ("sparsegpt", "gram"), ("magnitude", "weights")]
)
def test_it_records_how_far_the_output_of_each_layer_is_moved(method, known, dense, tmp_path):
    metrics = run(dense, tmp_path / "a", method=method).metrics
    assert metrics["output_error_from"] == known
    assert all(0 < layer["output_error"] < 1 for layer in metrics["layers"].values())


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("refine", ["none", "dsnot"])
def test_recovered_weights_have_the_same_masks_and_less_of_the_error(
    method, refine, dense, tmp_path
):
    changes = {"method": method, "refine": refine, "include": "*.layers.0.*", "order": "two-pass"}
    before = run(dense, tmp_path / "a", **changes)
    after = run(dense, tmp_path / "b", **changes, recover="least-squares")
    assert after.mask_digest == before.mask_digest
    assert after.metrics["output_error_from"] == "gram"
    assert all(0 < layer["recovered"] < 1 for layer in after.metrics["layers"].values())
    assert after.metrics["calibration"] is not None  # which magnitude alone has no use for


def test_a_method_that_mends_earlier_layers_is_run_in_one_pass_at_any_sparsity(dense, tmp_path):
    assert run(dense, tmp_path / "a", method="fista").metrics["order"] == "one-pass"
    assert run(dense, tmp_path / "b", method="sparsegpt").metrics["order"] == "two-pass"


def linears_of(dense: Path) -> dict[str, Linear]:
    return {linear.name: linear for linear in Decoder(empty_model(Checkpoint(dense))).all_linears()}


def test_a_finished_pruning_leaves_nothing_to_resume_behind(dense, tmp_path):
    run(dense, tmp_path / "a")
    assert not (tmp_path / "a/.resume").exists()
    files = {path.name for path in (tmp_path / "a").glob("*.safetensors")}
    assert files == {"model.safetensors", FILE_NAME}


@pytest.mark.parametrize("offload", ["auto", "device", "cpu", "disk"])
def test_where_activations_wait_decides_nothing(offload, dense, tmp_path):
    run(dense, tmp_path / "reference")
    run(dense, tmp_path / offload, offload=offload)
    assert content(tmp_path / offload) == content(tmp_path / "reference")


def test_a_model_that_is_whole_in_memory_is_pruned_the_same(dense, tmp_path, monkeypatch):
    run(dense, tmp_path / "streamed")

    def resident(checkpoint, *, dtype, trust_remote_code):
        return ResidentModel(load_model(checkpoint, dtype=dtype))

    monkeypatch.setattr(prune, "open_model", resident)
    run(dense, tmp_path / "resident")
    assert content(tmp_path / "streamed") == content(tmp_path / "resident")


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_experts_are_pruned_the_same_streamed_resumed_and_whole(
    method, mixture, tmp_path, monkeypatch
):
    run(mixture, tmp_path / "streamed", method=method)
    original = CheckpointRewriter.begin

    def dying(self, index, *arguments):
        if index == 1:
            raise Killed
        return original(self, index, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointRewriter, "begin", dying)
        with pytest.raises(Killed):
            run(mixture, tmp_path / "cut", method=method)
    run(mixture, tmp_path / "cut", method=method)
    assert content(tmp_path / "cut") == content(tmp_path / "streamed")

    def resident(checkpoint, *, dtype, trust_remote_code):
        return ResidentModel(load_model(checkpoint, dtype=dtype))

    monkeypatch.setattr(prune, "open_model", resident)
    run(mixture, tmp_path / "resident", method=method)
    assert content(tmp_path / "resident") == content(tmp_path / "streamed")


def test_how_experts_are_stored_decides_nothing(tmp_path):
    make_model("qwen3_moe", tmp_path / "split", torch.bfloat16, vocab_size=4096)
    add_tokenizer(tmp_path / "split")
    shutil.copytree(tmp_path / "split", tmp_path / "fused")
    names = store_fused(tmp_path / "fused")
    pruned = {}
    for name in ("split", "fused"):
        run(tmp_path / name, tmp_path / f"{name}-pruned")
        checkpoint = Checkpoint(tmp_path / f"{name}-pruned")
        assert checkpoint.locations.keys() == Checkpoint(tmp_path / name).locations.keys()
        pruned[name] = AutoModelForCausalLM.from_pretrained(checkpoint.folder).state_dict()
    assert all(torch.equal(pruned["split"][name], pruned["fused"][name]) for name in names)
    masks = [KeepMasks(tmp_path / f"{name}-pruned").digest for name in ("split", "fused")]
    assert masks[0] == masks[1]


def test_only_one_block_has_weights_at_a_time(dense):
    bring_each_block(dense)


def test_only_one_block_of_experts_has_weights_at_a_time(mixture):
    bring_each_block(mixture)


def bring_each_block(folder: Path) -> None:
    model = open_model(Checkpoint(folder), dtype=torch.float32, trust_remote_code=False)
    assert isinstance(model, StreamedModel)
    model.place_shell(torch.device("cpu"))
    for index in range(len(model.decoder.blocks)):
        model.load(index, torch.device("cpu"))
        there = [
            number
            for number, block in enumerate(model.decoder.blocks)
            if not any(parameter.is_meta for parameter in block.parameters())
        ]
        assert there == [index]
        model.free(index)
    assert model.model.lm_head.weight.is_meta  # the head is never read


def test_a_large_model_is_left_in_shards_with_an_index(dense, tmp_path, monkeypatch):
    run(dense, tmp_path / "one")
    monkeypatch.setattr("spp_cli.models.rewriting._JOIN_BELOW", 0)
    run(dense, tmp_path / "many")
    assert len(list((tmp_path / "many").glob("model-*-of-00005.safetensors"))) == BLOCKS + 1
    one, many = Checkpoint(tmp_path / "one"), Checkpoint(tmp_path / "many")
    assert set(one.locations) == set(many.locations)
    assert all(torch.equal(one.tensor(name), many.tensor(name)) for name in one.locations)
    assert KeepMasks(tmp_path / "one").digest == KeepMasks(tmp_path / "many").digest


def test_another_type_is_cast_and_config_json_says_so(dense, tmp_path):
    (tmp_path / "a").mkdir()
    config = SppConfig.model_validate(
        {"model": {"dtype": "float16"}, "prune": {"method": "magnitude", "pattern": "2:4"}}
    )
    prune.run(config, Sources(dense, True), tmp_path / "a", Silent())
    checkpoint = Checkpoint(tmp_path / "a")
    assert {checkpoint.dtype(name) for name in checkpoint.locations} == {torch.float16}
    assert checkpoint.config["dtype"] == "float16"
    others = {key: value for key, value in Checkpoint(dense).config.items() if key != "dtype"}
    assert {key: value for key, value in checkpoint.config.items() if key != "dtype"} == others
