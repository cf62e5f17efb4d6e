"""spp prune: one block in memory at a time, and a kill costs one block at most."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import add_tokenizer, make_model, store_fused
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from spp_cli.allocation.owl import OWL
from spp_cli.allocation.sensitivity import Sensitivity
from spp_cli.config import SppConfig
from spp_cli.errors import ModelError
from spp_cli.models.checkpoint import SINGLE, Checkpoint
from spp_cli.models.decoder import Decoder, Linear
from spp_cli.models.loading import empty_model, load_model
from spp_cli.models.rewriting import CheckpointRewriter
from spp_cli.models.streaming import ResidentModel, StreamedModel, open_model
from spp_cli.progress import Silent
from spp_cli.pruning.saved import SavedStatistics
from spp_cli.pruning.statistics import InputNorm
from spp_cli.publishing import RESUME
from spp_cli.sparsity.masks import FILE_NAME, KeepMasks
from spp_cli.sparsity.verify import verify_folder
from spp_cli.stages import known, prune
from spp_cli.stages.block_records import BlockRecords
from spp_cli.stages.calibration import calibration
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


@pytest.fixture(scope="module")
def many_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of two blocks with more experts than a little text reaches."""
    folder = tmp_path_factory.mktemp("many") / "model"
    make_model("qwen3_moe", folder, torch.bfloat16, vocab_size=4096, num_experts=64)
    return add_tokenizer(folder)


def run(
    dense: Path,
    target: Path,
    reporter: Silent | None = None,
    kept: Path | None = None,
    **changes: object,
) -> Result:
    """Prune; ``kept`` is where what is known of dense models is kept, by default in the target."""
    target.mkdir(exist_ok=True)
    calibration = {"samples": 5, "sequence_length": 32, "batch_size": 2}
    settings = {"method": "wanda", "sparsity": 0.6, "calibration": calibration, **changes}
    config = SppConfig.model_validate({"prune": settings})
    sources = Sources(dense, True, digests={"dense": dense.name}, statistics=kept)
    return prune.run(config, sources, target, reporter or Silent())


def content(folder: Path) -> dict[str, bytes]:
    names = ("model.safetensors", FILE_NAME, "spp_sparsity.json", "config.json")
    return {name: (folder / name).read_bytes() for name in names}


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def run_killed(
    monkeypatch: pytest.MonkeyPatch,
    where: tuple[type, str],
    block: int,
    dense: Path,
    target: Path,
    **how: object,
) -> None:
    """Prune as ``run`` does, killed at ``where``, a method of a class, called for a block."""
    original = getattr(*where)

    def dying(self, index, *arguments):
        if index == block:
            raise Killed
        return original(self, index, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(*where, dying)
        with pytest.raises(Killed):
            run(dense, target, **how)


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
    owner = {"weights": CheckpointRewriter, "record": BlockRecords}[moment]
    how = {"method": method, "order": order}
    run_killed(monkeypatch, (owner, "begin"), block, dense, tmp_path / "cut", **how)
    talk = Talk()
    result = run(dense, tmp_path / "cut", talk, method=method, order=order)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert len(result.metrics["layers"]) == BLOCKS * 7
    went_on = [line for line in talk.said if line.startswith("going on")]
    assert went_on == ([f"going on after block {block} of {BLOCKS}"] if block else [])


@pytest.mark.parametrize("damage", ["weights cut short", "record lost"])
def test_a_block_that_was_damaged_since_is_pruned_anew_and_those_behind_it(
    damage, dense, tmp_path, monkeypatch
):
    run(dense, tmp_path / "whole", method="sparsegpt")
    begin = (CheckpointRewriter, "begin")
    run_killed(monkeypatch, begin, 3, dense, tmp_path / "cut", method="sparsegpt")
    if damage == "weights cut short":
        shard = sorted((tmp_path / "cut").glob("model-*.safetensors"))[1]
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        (tmp_path / "cut" / RESUME / "blocks" / "block-00001.safetensors").unlink()
    talk = Talk()
    run(dense, tmp_path / "cut", talk, method="sparsegpt")
    assert f"going on after block 1 of {BLOCKS}" in talk.said
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_killed_pruning_goes_on_in_the_order_it_began_with(dense, tmp_path, monkeypatch):
    run_killed(monkeypatch, (BlockRecords, "begin"), 1, dense, tmp_path / "cut", sparsity=0.5)
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
            patch.setattr(OWL, "measure", None)
        result = run(dense, tmp_path / "cut", allocation="owl")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert result.metrics == whole.metrics


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:30],
        lambda text: "[1.0]",
        lambda text: "{}",
        lambda text: text.replace("7.", "5.", 1),
        lambda text: text.replace("layers.0", "layers.9", 1),
    ],
    ids=["cut short", "a list", "nothing", "another number", "another name"],
)
def test_measurements_that_were_damaged_on_disk_are_made_anew(damage, dense, tmp_path):
    kept = tmp_path / "kept"
    run(dense, tmp_path / "whole", kept=kept, allocation="owl")
    [measured] = kept.glob("*/owl-*.json")
    before = measured.read_text()
    assert damage(before) != before
    measured.write_text(damage(before))
    run(dense, tmp_path / "again", kept=kept, allocation="owl")
    assert measured.read_text() == before
    assert content(tmp_path / "again") == content(tmp_path / "whole")


@pytest.mark.parametrize("allocation", ["owl", "sensitivity"])
def test_what_was_measured_does_for_every_ratio(allocation, dense, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    named = {"name": allocation}
    run(dense, tmp_path / "first", kept=kept, allocation=named)
    other = {"sparsity": 0.7, "allocation": {**named, "width": 0.05}}
    whole = run(dense, tmp_path / "alone", **other)
    with monkeypatch.context() as patch:
        patch.setattr(OWL, "measure", None)
        patch.setattr(Sensitivity, "measure", None)
        result = run(dense, tmp_path / "then", kept=kept, **other)
    assert result.metrics == whole.metrics
    assert content(tmp_path / "then") == content(tmp_path / "alone")


def test_from_dense_statistics_every_method_prunes_without_another_forward(
    dense, tmp_path, monkeypatch
):
    prune_without_another_forward(dense, tmp_path, monkeypatch)


def test_from_dense_statistics_experts_are_pruned_without_another_forward(
    mixture, tmp_path, monkeypatch
):
    prune_without_another_forward(mixture, tmp_path, monkeypatch)


def prune_without_another_forward(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prune by many methods from statistics kept before: the same as from those of their own."""
    kept = tmp_path / "kept"
    run(model, tmp_path / "wanda", kept=kept, order="dense")
    others = {
        "sparsegpt": {"method": "sparsegpt", "exclude": ["*.0.*.q_proj"]},
        "fista": {"method": {"name": "fista", "iterations": 3, "rounds": 2}},
        "isc": {"method": "isc"},
        "dsnot": {"refine": "dsnot", "sparsity": 0.5},
        "recovered": {"method": "magnitude", "recover": "least-squares"},
        "owl": {"allocation": "owl"},
    }
    alone = {
        name: run(model, tmp_path / f"{name}-alone", order="dense", **settings)
        for name, settings in others.items()
    }
    with monkeypatch.context() as patch:  # no text flows any more: this would fail
        patch.setattr("spp_cli.pruning.engine.capture_calls", None)
        patch.setattr("spp_cli.allocation.dense.capture_calls", None)
        for name, settings in others.items():
            result = run(model, tmp_path / name, kept=kept, order="dense", **settings)
            assert result.metrics == alone[name].metrics
            assert content(tmp_path / name) == content(tmp_path / f"{name}-alone")


def test_experts_that_few_tokens_reach_are_told_of_in_a_line_each(
    many_experts, tmp_path, monkeypatch
):
    run_killed(monkeypatch, (BlockRecords, "begin"), 1, many_experts, tmp_path / "cut")
    warned = []
    for target in ("cut", "whole"):
        reporter = Silent()
        result = run(many_experts, tmp_path / target, reporter)
        warned.append(reporter.warnings)
    assert warned[0] == warned[1]
    unreached, thin = warned[0]
    tokens = {name: layer.get("tokens") for name, layer in result.metrics["layers"].items()}
    none = [name for name, count in tokens.items() if count == 0]
    few = [name for name, count in tokens.items() if count]
    assert none
    assert few
    assert None in tokens.values()
    assert f"reached {none[0]} and {len(none) - 1} other linear layers: pruned by" in unreached
    assert (
        f"and {len(few) - 1} other linear layers, {min(filter(None, tokens.values()))} at" in thin
    )


def test_experts_that_no_measured_sequence_reaches_lose_what_is_asked_for(many_experts, tmp_path):
    reporter, allocation = Silent(), {"name": "sensitivity", "samples": 1}
    result = run(many_experts, tmp_path / "a", reporter, allocation=allocation)
    measured = result.metrics["allocation"]["sensitivity"]
    targets = {name: layer["target"] for name, layer in result.metrics["layers"].items()}
    without = targets.keys() - measured.keys()
    assert without
    assert all(abs(targets[name] - 0.6) < 0.02 for name in without)
    assert result.metrics["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert f"{len(without)} linear layers are reached by none of the sequences" in str(
        reporter.warnings
    )


@torch.no_grad()
def test_dense_statistics_are_those_of_the_dense_model(dense, tmp_path):
    result = run(dense, tmp_path / "a", order="dense")
    assert result.metrics["order"] == "dense"
    model = load_model(Checkpoint(dense), dtype=torch.float32)  # as a CPU computes
    norms, hooks = {}, []
    for linear in Decoder(model).all_linears():
        norms[linear.name] = InputNorm(linear.in_features, torch.device("cpu"))

        def hook(module, args, norm=norms[linear.name]):
            norm.update(args[0].float(), samples=len(args[0]))

        hooks.append(linear.module.register_forward_pre_hook(hook))
    asked = SppConfig.model_validate(
        {"prune": {"calibration": {"samples": 5, "sequence_length": 32}}}
    )
    text = calibration(asked, Sources(dense, True), model.config, Silent()).tokens
    for batch in text.tokens.split(2):
        model(batch)
    masks = KeepMasks(tmp_path / "a")
    for linear in Decoder(model).all_linears():
        scores = linear.weight.float().abs() * norms[linear.name].norm()
        lowest_kept = scores.masked_fill(~masks[linear.name], torch.inf).amin(dim=1)
        highest_gone = scores.masked_fill(masks[linear.name], 0).amax(dim=1)
        assert (highest_gone <= lowest_kept * (1 + 1e-5)).all()


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_gathering_that_was_killed_goes_on(block, dense, tmp_path, monkeypatch):
    kept, original = tmp_path / "kept", SavedStatistics.write
    run(dense, tmp_path / "whole", order="dense", method="sparsegpt")
    written = []

    def counting(self, index, *arguments):
        written.append(index)
        return original(self, index, *arguments)

    how = {"kept": kept, "order": "dense", "method": "sparsegpt"}
    run_killed(monkeypatch, (SavedStatistics, "write"), block, dense, tmp_path / "cut", **how)
    with monkeypatch.context() as patch:
        patch.setattr(SavedStatistics, "write", counting)
        run(dense, tmp_path / "cut", **how)
    assert written == list(range(block, BLOCKS))
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    "damage", ["cut short", "of another make", "another bit", "another name", "another block's"]
)
def test_damaged_statistics_are_gathered_anew(damage, dense, tmp_path):
    kept = tmp_path / "kept"
    run(dense, tmp_path / "whole", kept=kept, order="dense", method="sparsegpt")
    [file] = kept.glob("*/block-00001.safetensors")
    before = file.read_bytes()
    if damage == "cut short":
        file.write_bytes(before[:-1])
    elif damage == "of another make":
        save_file({"a": torch.zeros(1)}, file, {"format": "pt"})
    elif damage == "another bit":
        file.write_bytes(before[:-9] + bytes([before[-9] ^ 1]) + before[-8:])
    elif damage == "another name":
        file.write_bytes(before.replace(b"q_proj", b"x_proj", 1))
    else:
        file.write_bytes(file.with_name("block-00002.safetensors").read_bytes())
    leftover = file.with_name(".block-00001.safetensors.1.writing")
    leftover.write_bytes(before)
    reporter = Silent()
    run(dense, tmp_path / "again", reporter, kept=kept, order="dense", method="sparsegpt")
    assert reporter.warnings == [f"{file} is damaged, and gathered anew"]
    assert not leftover.exists()
    assert file.read_bytes() == before
    assert content(tmp_path / "again") == content(tmp_path / "whole")


def test_statistics_of_another_version_are_not_taken(dense, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    run(dense, tmp_path / "a", kept=kept, order="dense", method="sparsegpt")
    now = known.arithmetic()
    monkeypatch.setattr(known, "arithmetic", lambda: {**now, "torch": "0"})
    run(dense, tmp_path / "b", kept=kept, order="dense", method="sparsegpt")
    assert len(list(kept.iterdir())) == 2


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


INFINITE = [
    (
        "model.layers.3.mlp.down_proj.weight",
        1e5,
        "float16",
        "values of up to 9.984e+04, and float16",
    ),
    (
        "lm_head.weight",
        2e5,
        "float16",
        "values of up to 1.997e+05, and float16 holds at most 65504",
    ),
    ("model.layers.2.input_layernorm.weight", torch.nan, "auto", "1 value that is NaN or infinity"),
    ("model.norm.weight", -torch.inf, "auto", "1 value that is NaN or infinity"),
    ("model.embed_tokens.weight", torch.inf, "float32", "1 value that is NaN or infinity"),
]


@pytest.mark.parametrize(("name", "value", "dtype", "found"), INFINITE)
def test_what_cannot_be_stored_is_refused_before_anything_is_pruned(
    name, value, dtype, found, dense, tmp_path, monkeypatch
):
    shutil.copytree(dense, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / SINGLE)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, tmp_path / "model" / SINGLE, {"format": "pt"})
    monkeypatch.setattr(prune, "prune_blocks", None)
    (tmp_path / "a").mkdir()
    config = SppConfig.model_validate({"model": {"dtype": dtype}, "prune": {"method": "magnitude"}})
    with pytest.raises(ModelError, match=f"{name}.*{re.escape(found)}"):
        prune.run(config, Sources(tmp_path / "model", True), tmp_path / "a", Silent())
    problems = verify_folder(tmp_path / "model").problems  # it casts nothing
    assert any(name.removesuffix(".weight") in each for each in problems) == (dtype != "float16")


def test_a_head_that_is_not_stored_is_missed_before_anything_is_pruned(dense, tmp_path):
    shutil.copytree(dense, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / SINGLE)
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model" / SINGLE, {"format": "pt"})
    with pytest.raises(ModelError, match=r"config.json asks for.*missing.*lm_head\.weight"):
        run(tmp_path / "model", tmp_path / "a", method="magnitude")


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
