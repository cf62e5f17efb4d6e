"""Wanda++: gradients of a block's output against plain autograd, and blocks that learn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from block_cases import model_of, prune, region_of, tokens
from torch import Tensor

from spp_cli.errors import NumericalError
from spp_cli.models.streaming import ResidentModel
from spp_cli.pruning.engine import PrunedLayer
from spp_cli.pruning.wanda import Wanda
from spp_cli.pruning.wanda_plus_plus import WandaPlusPlus
from spp_cli.recovering.least_squares import LeastSquares
from spp_cli.refining.dsnot import DSnoT
from spp_cli.sparsity.patterns import NofM, Pattern, Unstructured

HALF, TWO_OF_FOUR = Unstructured(0.5), NofM(2, 4)


def _inputs(source: ResidentModel) -> dict[str, Tensor]:
    """Return what comes to the linears of the first block: (tokens, in_features) each."""
    inputs: dict[str, Tensor] = {}
    hooks = [
        linear.module.register_forward_pre_hook(
            lambda module, args, name=linear.name: inputs.update({name: args[0].flatten(0, 1)})
        )
        for linear in source.decoder.linears(0)
    ]
    with torch.no_grad():
        source.model(tokens())
    for hook in hooks:
        hook.remove()
    return inputs


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_gradients_are_those_of_plain_autograd(family: str, tmp_path: Path) -> None:
    source = model_of(family, tmp_path / "model")
    region = region_of(source)
    found = WandaPlusPlus(iterations=0).see_block(region, {})
    block, linears = source.decoder.blocks[0], source.decoder.linears(0)
    inputs: list[Tensor] = []
    hook = block.register_forward_hook(lambda module, args, output: inputs.append(output))
    squares = {linear.name: torch.zeros_like(linear.weight) for linear in linears}
    for sequence in tokens():
        for linear in linears:
            linear.parameter.requires_grad_().grad = None
        source.model(sequence[None])
        output = inputs.pop()
        (output[0] if isinstance(output, tuple) else output).norm().backward()
        for linear in linears:
            if linear.parameter.grad is not None:
                squares[linear.name] += linear.as_stored(linear.parameter.grad).square()
    hook.remove()
    for name, square in squares.items():
        torch.testing.assert_close(found[name], (square / 6).sqrt(), rtol=1e-4, atol=1e-6)
    assert any(gradient.any() for gradient in found.values())


def test_the_score_adds_the_gradient_to_the_norm_over_all_tokens(tmp_path: Path) -> None:
    source = model_of("llama", tmp_path / "model")
    region = region_of(source)
    dense = {linear.name: linear.weight.clone() for linear in region.linears}
    method = WandaPlusPlus(iterations=0, scale=7.0)
    gradients = method.see_block(region, {})
    inputs = _inputs(source)
    layers = prune(source, method, "two-pass", HALF)
    for name, weight in dense.items():
        norm = inputs[name].norm(dim=0)
        scores = (7.0 * gradients[name] + norm) * weight.abs()
        keep = layers[name].keep
        kept, gone = scores.masked_fill(~keep, torch.inf), scores.masked_fill(keep, 0)
        assert (gone.amax(dim=1) <= kept.amin(dim=1) * (1 + 1e-4)).all()
        assert (keep.sum(dim=1) == weight.shape[1] // 2).all()


@pytest.mark.parametrize("order", ["one-pass", "two-pass"])
def test_without_gradients_and_steps_it_is_wanda(order: str, tmp_path: Path) -> None:
    ours = prune(
        model_of("llama", tmp_path / "a"), WandaPlusPlus(iterations=0, scale=0), order, HALF
    )
    wanda = prune(model_of("llama", tmp_path / "b"), Wanda(), order, HALF)
    assert all(torch.equal(ours[name].weight, layer.weight) for name, layer in wanda.items())


@pytest.mark.parametrize("pattern", [HALF, TWO_OF_FOUR], ids=str)
def test_steps_bring_the_pruned_block_nearer_to_the_dense_one(
    pattern: Pattern, tmp_path: Path
) -> None:
    errors = []
    for iterations in (0, 1, 8):
        source = model_of("llama", tmp_path / str(iterations))
        region = region_of(source)
        with torch.no_grad():
            targets = [region.output(number) for number in range(len(region))]
        method = WandaPlusPlus(iterations=iterations, samples=6, learning_rate=3e-5)
        layers = prune(source, method, "two-pass", pattern)
        for layer in layers.values():
            assert not layer.weight[~layer.keep].any()
            assert math.isclose(layer.sparsity, 0.5, abs_tol=0.02)
        with torch.no_grad():
            errors.append(
                sum((region.output(n) - target).norm() for n, target in enumerate(targets))
            )
    assert errors[1] < 0.98 * errors[0]
    assert errors[2] < 0.9 * errors[1]


def test_a_few_sequences_weigh_norms_against_gradients_as_all_do(tmp_path: Path) -> None:
    alike = tokens()[:1].expand(6, -1)
    how = {"scale": 30.0, "learning_rate": 1e-9}
    one, none = (
        prune(model_of("llama", tmp_path / name), method, "two-pass", HALF, alike)
        for name, method in (
            ("one", WandaPlusPlus(iterations=1, samples=1, **how)),
            ("none", WandaPlusPlus(iterations=0, **how)),
        )
    )
    for name, layer in none.items():
        assert torch.equal(one[name].keep, layer.keep)
        # What is lost is measured against the dense weights, not against those that were moved.
        assert one[name].record["output_error"] > 0.5 * layer.record["output_error"] > 0.01


MOVED = WandaPlusPlus(iterations=2, samples=6, learning_rate=1e-3)


def _first_block(folder: Path, **then: Any) -> dict[str, PrunedLayer]:
    """Return the layers of the first block, whose inputs are the same whatever comes after."""
    source = model_of("llama", folder)
    layers = prune(source, MOVED, "two-pass", HALF, **then)
    return {linear.name: layers[linear.name] for linear in source.decoder.linears(0)}


def test_what_is_fitted_after_it_is_fitted_to_the_dense_weights(tmp_path: Path) -> None:
    source = model_of("llama", tmp_path / "dense")
    inputs = _inputs(source)
    moved = _first_block(tmp_path / "moved")
    fitted = _first_block(tmp_path / "fitted", recovery=LeastSquares())
    for linear in source.decoder.linears(0):
        errors = [
            torch.linalg.vector_norm(
                (how[linear.name].weight - linear.weight) @ inputs[linear.name].T
            )
            for how in (moved, fitted)
        ]
        assert torch.equal(fitted[linear.name].keep, moved[linear.name].keep)
        assert errors[1] < 0.95 * errors[0]


def test_weights_that_dsnot_takes_back_after_it_are_the_dense_ones(tmp_path: Path) -> None:
    linears = model_of("llama", tmp_path / "dense").decoder.linears(0)
    dense = {linear.name: linear.weight for linear in linears}
    alone = _first_block(tmp_path / "alone")
    refined = _first_block(tmp_path / "refined", refinement=DSnoT())
    back = 0
    for name, layer in alone.items():
        grown = refined[name].keep & ~layer.keep
        assert torch.equal(refined[name].weight[grown], dense[name][grown])
        back += int(grown.sum())
    assert back


def test_blocks_of_which_nothing_is_pruned_are_passed_by(tmp_path: Path) -> None:
    layers = prune(model_of("llama", tmp_path / "a"), MOVED, "two-pass", HALF, only="layers.1.mlp")
    assert {name.rpartition(".")[2] for name in layers} == {"gate_proj", "up_proj", "down_proj"}


def test_gradients_too_large_for_float16_are_taken_smaller(tmp_path: Path) -> None:
    found = []
    for dtype in (torch.float32, torch.float16):
        source = model_of("llama", tmp_path / str(dtype))
        source.decoder.blocks[0].mlp.down_proj.weight.data *= 5000
        source.model.to(dtype)
        region = region_of(source)
        found.append(region.gradients(0, lambda output: output.float().square().sum()))
    assert max(gradient.abs().max() for gradient in found[0]) > torch.finfo(torch.float16).max
    for exact, half in zip(*found, strict=True):
        assert torch.linalg.vector_norm(half - exact) < 0.02 * torch.linalg.vector_norm(exact)


def test_steps_that_are_too_long_are_not_blamed_on_the_dense_model(tmp_path: Path) -> None:
    method = WandaPlusPlus(iterations=2, samples=6, learning_rate=1e30)
    with pytest.raises(NumericalError, match=r"wanda\+\+ made NaN or infinity of model\.layers\.0"):
        prune(model_of("llama", tmp_path / "a"), method, "two-pass", HALF)


def test_a_block_is_moved_alike_every_time(tmp_path: Path) -> None:
    first, second = (
        prune(model_of("llama", tmp_path / name), WandaPlusPlus(samples=2), "two-pass", HALF)
        for name in ("a", "b")
    )
    assert all(torch.equal(first[name].weight, layer.weight) for name, layer in second.items())
    linears = model_of("llama", tmp_path / "c").decoder.all_linears()
    moved = [
        lin
        for lin in linears
        if not (first[lin.name].weight == lin.weight)[first[lin.name].keep].all()
    ]
    assert moved
