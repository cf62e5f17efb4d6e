"""The error of a layer's output, estimated from statistics, is the one that X itself would tell."""

from __future__ import annotations

import pytest
import torch

from spp_cli.pruning.output_error import best_known, output_error
from spp_cli.pruning.sparsegpt import SparseGPT
from spp_cli.pruning.statistics import Gram, InputNorm, Moments
from spp_cli.sparsity.patterns import NofM

CPU = torch.device("cpu")


def layer(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a dense weight, and the same with a half of it zeroed."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, columns, generator=generator)
    return dense, dense * (torch.rand(rows, columns, generator=generator) > 0.5)


def counted(kind: type, inputs: torch.Tensor):
    """Return the statistic of inputs (sequences, tokens, columns), which come in two batches."""
    statistic = kind(inputs.shape[-1], CPU)
    for batch in inputs.split(2):
        statistic.update(batch, len(batch))
    return statistic


def measured(dense: torch.Tensor, pruned: torch.Tensor, inputs: torch.Tensor) -> float:
    rows = inputs.flatten(0, 1).double()
    change = torch.linalg.matrix_norm(rows @ (pruned - dense).double().T)
    return float(change / torch.linalg.matrix_norm(rows @ dense.double().T))


@pytest.mark.parametrize("columns", [16, 600])  # one panel of the Gram matrix, and several
def test_a_gram_matrix_tells_it_exactly(columns):
    dense, pruned = layer(40, columns)
    mixing = torch.randn(columns, columns) * 0.3 + torch.eye(columns)  # inputs that hang together
    inputs = torch.randn(4, 50, columns) @ mixing
    found = output_error(dense, pruned, [counted(Gram, inputs), counted(InputNorm, inputs)])
    assert found == pytest.approx(measured(dense, pruned, inputs), rel=1e-4)


def test_of_many_rows_a_part_is_enough():
    dense, pruned = layer(1100, 32)
    inputs = torch.randn(4, 50, 32)
    found = output_error(dense, pruned, [counted(Gram, inputs)])
    assert found == pytest.approx(measured(dense, pruned, inputs), rel=0.05)


@pytest.mark.parametrize("kind", [InputNorm, Moments])
def test_norms_tell_it_exactly_where_inputs_are_uncorrelated(kind):
    dense, pruned = layer(40, 16)
    orthogonal = torch.linalg.qr(torch.randn(64, 16)).Q * torch.arange(1, 17)
    inputs = orthogonal.view(4, 16, 16)
    found = output_error(dense, pruned, [counted(kind, inputs)])
    assert found == pytest.approx(measured(dense, pruned, inputs), rel=1e-4)


def test_weights_alone_tell_it_where_inputs_are_equally_large_besides():
    dense, pruned = layer(40, 16)
    inputs = torch.linalg.qr(torch.randn(64, 16)).Q.view(4, 16, 16)
    assert output_error(dense, pruned, []) == pytest.approx(measured(dense, pruned, inputs))


@pytest.mark.parametrize("kind", [Gram, InputNorm, None])
def test_it_is_nought_where_nothing_changed_one_where_all_is_gone_and_nought_of_nothing(kind):
    dense, _ = layer(8, 16)
    known = [counted(kind, torch.randn(4, 5, 16))] if kind else []
    assert output_error(dense, dense, known) == 0
    assert output_error(dense, torch.zeros_like(dense), known) == pytest.approx(1, rel=1e-5)
    assert output_error(torch.zeros_like(dense), torch.zeros_like(dense), known) == 0


def test_it_is_the_loss_that_sparsegpt_records():
    dense, _ = layer(40, 32)
    gram = counted(Gram, torch.randn(4, 50, 32))
    method = SparseGPT(damping=1e-8)
    pruned = method.prune(dense, method.prepare(gram), NofM(2, 4))
    H = gram.hessian()
    by_loss = (2 * pruned.record["loss"] / ((dense @ H) * dense).sum()).sqrt()
    assert output_error(dense, pruned.weight, [gram]) == pytest.approx(float(by_loss), rel=1e-3)


def test_the_most_exact_of_what_is_known_is_taken():
    assert best_known([Moments, Gram]) == "gram"
    assert best_known([Moments]) == best_known([InputNorm]) == "norms"
    assert best_known([]) == "weights"
