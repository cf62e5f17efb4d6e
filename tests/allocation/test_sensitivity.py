"""Sensitivity: ratios as published; traces as a plain look at the whole model finds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import make_model
from golden_cases import case
from hypothesis import given
from hypothesis import strategies as st
from ratio_laws import NUMBERS_AND_SIZES, SPARSITIES, WIDTHS, check_ratios
from torch import Tensor
from torch.nn.functional import cross_entropy

from spp_cli.allocation.budget import weighted_mean
from spp_cli.allocation.dense import DenseModel
from spp_cli.allocation.sensitivity import Sensitivity, fisher_traces, hessian_traces
from spp_cli.errors import ConfigError, NumericalError
from spp_cli.models.activations import ActivationStore, Offload
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.decoder import Decoder, Linear
from spp_cli.models.loading import load_model
from spp_cli.models.streaming import BlockSource, ResidentModel, StreamedModel
from spp_cli.progress import Silent

CPU = torch.device("cpu")
SAMPLES = 3


def tokens() -> Tensor:
    return torch.randint(3, 128, (4, 24), generator=torch.Generator().manual_seed(0))


def dense(source: BlockSource, folder: Path, kind: Offload = "device") -> DenseModel:
    batches = list(tokens().split(2))
    return DenseModel(
        source, batches, CPU, lambda _: ActivationStore(kind, CPU, folder / "states"), Silent()
    )


def streamed(folder: Path) -> BlockSource:
    return StreamedModel(Checkpoint(folder), dtype=torch.float32, trust_remote_code=False)


def resident(folder: Path) -> BlockSource:
    return ResidentModel(load_model(Checkpoint(folder), dtype=torch.float32))


def losses(folder: Path) -> tuple[list[Linear], list[Tensor]]:
    """Return the linears of a whole model, with the loss of each sequence to be differentiated."""
    model = load_model(Checkpoint(folder), dtype=torch.float32)
    model.set_attn_implementation("eager")  # others have no second derivative
    linears = Decoder(model).all_linears()
    for linear in linears:
        linear.parameter.requires_grad_()
    return linears, [
        cross_entropy(model(sequence[None]).logits[0, :-1], sequence[1:])
        for sequence in tokens()[:SAMPLES]
    ]


def gradients(loss: Tensor, linears: Sequence[Linear], create_graph: bool = False) -> list[Tensor]:
    """Return them by the parameters as they are stored; zeros where the loss does not depend."""
    parameters = [linear.parameter for linear in linears]
    found = torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def test_ratios_are_those_of_the_published_algorithm() -> None:
    golden = case("sensitivity_allocation")
    measured = [value for row in golden["sensitivity"] for value in row]
    for sparsity, key in ((golden["p"], "sparsity"), (golden["p_second"], "sparsity_p_0_7")):
        found = Sensitivity(width=golden["alpha"]).ratios(measured, [1] * 6, sparsity)
        expected = [value for row in golden[key] for value in row]
        assert found == pytest.approx(expected, abs=1e-12)


@given(NUMBERS_AND_SIZES, SPARSITIES, WIDTHS)
def test_whatever_is_sensitive_the_mean_is_the_sparsity_and_all_keep_some(
    drawn: list[tuple[float, int]], sparsity: float, width: float
) -> None:
    check_ratios(Sensitivity(width=width).ratios, drawn, sparsity, width)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20), st.integers(-20, 20))
def test_only_the_ranks_of_sensitivities_count(measured: list[float], power: int) -> None:
    sizes = [1] * len(measured)
    scaled = [value * 2.0**power for value in measured]
    allocation = Sensitivity()
    assert allocation.ratios(scaled, sizes, 0.5) == allocation.ratios(measured, sizes, 0.5)


def test_linears_that_are_all_alike_lose_alike() -> None:
    assert Sensitivity().ratios([2.5] * 3, [3, 5, 7], 0.6) == pytest.approx([0.6] * 3, abs=1e-12)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "opt", "mixtral"])
def test_gradients_block_by_block_are_those_of_the_whole_model(family: str, tmp_path: Path) -> None:
    folder = make_model(family, tmp_path / "model")
    source = streamed(folder)
    linears, of_sequence = losses(folder)
    expected = dict.fromkeys((linear.name for linear in linears), 0.0)
    for loss in of_sequence:
        for linear, gradient in zip(linears, gradients(loss, linears), strict=True):
            expected[linear.name] += gradient.square().sum().item() / SAMPLES
    found = fisher_traces(dense(source, tmp_path), source.decoder.all_linears(), SAMPLES)
    assert found == pytest.approx(expected, rel=1e-3)
    assert all(p.is_meta for block in source.decoder.blocks for p in block.parameters())
    head = source.model.get_output_embeddings().weight
    assert head.is_meta == (head is not source.model.get_input_embeddings().weight)


def test_a_block_in_which_nothing_is_pruned_is_passed_by(tmp_path: Path) -> None:
    source = streamed(make_model("llama", tmp_path / "model", num_hidden_layers=3))
    linears = source.decoder.all_linears()
    expected = fisher_traces(dense(source, tmp_path), linears, SAMPLES)
    chosen = [linear for linear in linears if ".layers.1." in linear.name]
    found = fisher_traces(dense(source, tmp_path), chosen, SAMPLES)
    assert found == {linear.name: expected[linear.name] for linear in chosen}


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_where_activations_wait_changes_nothing(kind: Offload, tmp_path: Path) -> None:
    source = streamed(make_model("llama", tmp_path / "model"))
    linears = source.decoder.all_linears()
    expected = fisher_traces(dense(source, tmp_path), linears, SAMPLES)
    assert fisher_traces(dense(source, tmp_path, kind), linears, SAMPLES) == expected


@pytest.mark.parametrize("open_model", [streamed, resident])
def test_probes_see_the_curvature_that_a_second_derivative_has(open_model, tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "model")
    source = open_model(folder)
    before = {name: t.clone() for name, t in source.model.state_dict().items() if not t.is_meta}
    linears, of_sequence = losses(folder)
    signs = []
    for number, linear in enumerate(linears):
        generator = torch.Generator().manual_seed(number)
        drawn = torch.randint(2, linear.weight.shape, generator=generator, dtype=torch.int8)
        signs.append(linear.as_stored(2.0 * drawn - 1))
    expected = dict.fromkeys((linear.name for linear in linears), 0.0)
    for loss in of_sequence:
        first = gradients(loss, linears, create_graph=True)
        along = sum((g * z).sum() for g, z in zip(first, signs, strict=True))
        assert isinstance(along, Tensor)
        for linear, z, second in zip(linears, signs, gradients(along, linears), strict=True):
            expected[linear.name] += (z * second).sum().item() / SAMPLES
    found = hessian_traces(dense(source, tmp_path), source.decoder.all_linears(), SAMPLES, 1)
    largest = max(map(abs, expected.values()))
    assert found == pytest.approx(expected, rel=0.05, abs=0.01 * largest)
    after = source.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_it_allocates_by_what_it_measured(tmp_path: Path) -> None:
    source = streamed(make_model("llama", tmp_path / "model"))
    linears = [lin for lin in source.decoder.all_linears() if not lin.name.endswith("up_proj")]
    sensitivity = Sensitivity(width=0.2)
    measured = sensitivity.measure(linears, dense(source, tmp_path))
    allocated = sensitivity.allocate(linears, 0.5, measured)
    sizes = [linear.weight.numel() for linear in linears]
    assert allocated.record == {"sensitivity": measured}
    assert set(allocated.ratios) == set(measured) == {linear.name for linear in linears}
    assert weighted_mean(list(allocated.ratios.values()), sizes) == pytest.approx(0.5, abs=1e-9)
    by_sensitivity = sorted(measured, key=lambda name: -measured[name])
    assert by_sensitivity == sorted(allocated.ratios, key=allocated.ratios.__getitem__)
    assert allocated.summary.count(by_sensitivity[0]) == 1


def test_a_gradient_that_is_no_number_is_named(tmp_path: Path) -> None:
    source = resident(make_model("llama", tmp_path / "model"))
    source.model.get_submodule("model.layers.1.mlp.up_proj").weight.data[0] = float("nan")
    with pytest.raises(NumericalError, match=r"the gradient by model\.layers\.\d\.\S+ holds NaN"):
        Sensitivity().measure(source.decoder.all_linears(), dense(source, tmp_path))


def test_weights_too_coarse_to_be_moved_a_little_are_refused(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "model", torch.bfloat16)
    source = StreamedModel(Checkpoint(folder), dtype=None, trust_remote_code=False)
    with pytest.raises(ConfigError, match=r"less than bfloat16 tells apart\. Set model\.dtype"):
        Sensitivity(estimate="hutchinson").measure(
            source.decoder.all_linears(), dense(source, tmp_path)
        )


def test_probes_that_would_send_tokens_to_other_experts_are_refused(tmp_path: Path) -> None:
    source = resident(make_model("mixtral", tmp_path / "model"))
    linears, probing = source.decoder.all_linears(), Sensitivity(estimate="hutchinson")
    told = r"sends tokens to other experts.*Set estimate: fisher"
    with pytest.raises(ConfigError, match=told):
        probing.check(linears, 0.5)
    attention = [linear for linear in linears if "self_attn" in linear.name]
    probing.check(attention, 0.5)
    with pytest.raises(ConfigError, match=told):
        probing.measure(attention, dense(source, tmp_path))
