"""OWL against the released code's numbers, and against a plain look at the whole model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import make_model
from golden_cases import case
from hypothesis import given
from ratio_laws import NUMBERS_AND_SIZES, SPARSITIES, WIDTHS, check_ratios

from spp_cli.allocation.dense import DenseModel
from spp_cli.allocation.owl import OWL, outlier_percentage
from spp_cli.errors import NumericalError
from spp_cli.models.activations import ActivationStore
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.loading import load_model
from spp_cli.models.streaming import BlockSource, ResidentModel, StreamedModel
from spp_cli.progress import Silent
from spp_cli.pruning.statistics import InputNorm

CPU = torch.device("cpu")


def tokens() -> torch.Tensor:
    return torch.randint(3, 128, (6, 24), generator=torch.Generator().manual_seed(0))


def dense(source: BlockSource, kind: str = "device") -> DenseModel:
    batches = list(tokens().split(2))
    return DenseModel(source, batches, CPU, lambda _: ActivationStore(kind, CPU), Silent())


def test_outliers_and_ratios_are_those_of_the_released_code() -> None:
    golden = case("owl_allocation")
    owl = OWL(multiple=golden["M"], width=golden["lamda"])
    percentages = [
        outlier_percentage([("block", torch.tensor([scores]), torch.tensor(1.0))], owl.multiple)
        for scores in golden["layer_scores"]
    ]
    assert percentages == golden["outlier_ratio_percent"]
    found = owl.ratios(percentages, [1, 1, 1, 1], golden["sparsity"])
    assert found == pytest.approx(golden["layer_sparsity"], abs=1e-12)


@given(NUMBERS_AND_SIZES, SPARSITIES, WIDTHS)
def test_whatever_stands_out_the_mean_is_the_sparsity_and_every_block_keeps_some(
    drawn: list[tuple[float, int]], sparsity: float, width: float
) -> None:
    check_ratios(OWL(width=width).ratios, drawn, sparsity, width)


def test_blocks_that_are_all_alike_lose_alike() -> None:
    assert OWL().ratios([2.5, 2.5, 2.5], [3, 5, 7], 0.6) == pytest.approx([0.6] * 3, abs=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt", "gpt_neox"])
def test_a_block_is_judged_as_a_plain_look_at_the_dense_model_judges_it(
    family: str, tmp_path: Path
) -> None:
    model = load_model(Checkpoint(make_model(family, tmp_path / "model")), dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    source = ResidentModel(model)
    linears = [lin for lin in source.decoder.all_linears() if not lin.name.endswith("up_proj")]
    owl = OWL(multiple=2)
    found = owl.allocate(linears, 0.5, owl.measure(linears, dense(source)))
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)

    norms, hooks = {}, []
    for linear in linears:
        norms[linear.name] = InputNorm(linear.in_features, CPU)

        def hook(module, args, norm=norms[linear.name]):
            norm.update(args[0].reshape(1, -1, args[0].shape[-1]), samples=1)

        hooks.append(linear.module.register_forward_pre_hook(hook))
    for sequence in tokens():
        model(sequence[None])
    expected = {}
    for index in range(len(source.decoder.blocks)):
        path = f"{source.decoder.path}.{index}"
        inside = [linear for linear in linears if linear.name.startswith(f"{path}.")]
        scores = torch.cat(
            [(lin.weight.abs() * norms[lin.name].norm()).flatten() for lin in inside]
        )
        expected[path] = 100 * (scores > 2 * scores.mean()).float().mean().item()
    # Sums in another order may turn a near tie.
    assert found.record["outlier_percentage"] == pytest.approx(expected, abs=0.02)
    assert set(found.ratios) == {linear.name for linear in linears}


def test_one_block_at_a_time_is_read_and_the_text_passes_it_once(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "model", num_hidden_layers=4)
    source = StreamedModel(Checkpoint(folder), dtype=torch.float32, trust_remote_code=False)
    passed = [0] * 4
    for index, block in enumerate(source.decoder.blocks):

        def count(module, args, output, index=index):
            passed[index] += 1

        block.register_forward_hook(count)
    linears = source.decoder.all_linears()
    for number, _ in enumerate(dense(source).statistics(linears, InputNorm)):
        there = [
            index
            for index, block in enumerate(source.decoder.blocks)
            if not any(parameter.is_meta for parameter in block.parameters())
        ]
        assert there == [number]
    assert all(p.is_meta for block in source.decoder.blocks for p in block.parameters())
    # Three batches; capturing steps over the blocks and calls each of them once a batch besides.
    assert passed == [6] * 4


@pytest.mark.parametrize("place", ["mlp.up_proj", "post_attention_layernorm"])
def test_weights_or_inputs_that_are_no_numbers_are_named(place: str, tmp_path: Path) -> None:
    model = load_model(Checkpoint(make_model("llama", tmp_path / "model")), dtype=torch.float32)
    model.get_submodule(f"model.layers.1.{place}").weight.data[0] = float("nan")
    source = ResidentModel(model)
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.\w+ hold NaN or infinity"):
        OWL().measure(source.decoder.all_linears(), dense(source))


def test_a_block_that_no_text_reaches_loses_what_is_asked_for(tmp_path: Path) -> None:
    source = ResidentModel(load_model(Checkpoint(make_model("llama", tmp_path / "model"))))
    linears = [lin for lin in source.decoder.all_linears() if "layers.0" in lin.name]
    source.decoder.blocks[1].unused = torch.nn.Linear(64, 8)
    linears += [lin for lin in source.decoder.all_linears() if lin.name.endswith("unused")]
    measured = OWL().measure(linears, dense(source))
    assert list(measured) == ["model.layers.0"]
    ratios = OWL().allocate(linears, 0.6, measured).ratios
    assert ratios == pytest.approx({linear.name: 0.6 for linear in linears}, abs=1e-9)
    unused = linears[-1:]
    assert OWL().allocate(unused, 0.6, OWL().measure(unused, dense(source))).ratios == {
        unused[0].name: 0.6
    }
