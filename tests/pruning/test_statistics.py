"""What statistics tell of inputs, and which of them does for which others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import a_layer, gram_of

from spp_cli.errors import ConfigError
from spp_cli.pruning.saved import check_kept
from spp_cli.pruning.statistics import (
    Gram,
    InputNorm,
    Moments,
    PairedGram,
    Statistic,
    fewest,
    folded,
    unfolded,
)
from spp_cli.pruning.wanda import Wanda
from spp_cli.pruning.wanda_plus_plus import WandaPlusPlus

CPU = torch.device("cpu")


def test_one_statistic_does_for_those_it_derives_from():
    assert fewest([None, InputNorm, None]) == [InputNorm]
    assert fewest([InputNorm, Moments]) == [Moments]
    assert fewest([PairedGram, Gram, Gram]) == [PairedGram]
    assert fewest([InputNorm, Gram]) == [InputNorm, Gram]


def test_a_gram_matrix_knows_the_norms_too():
    _, inputs = a_layer(0)
    norm = InputNorm(16, CPU)
    norm.update(inputs, 1)
    torch.testing.assert_close(gram_of(inputs).norm(), norm.norm())


def test_the_difference_to_the_dense_inputs_is_summed_once_there_is_one():
    _, dense = a_layer(0, columns=300, tokens=40)
    assert gram_of(dense, dense).difference() is None
    inputs = dense + 0.1 * torch.randn_like(dense)
    pair = gram_of(torch.cat([dense, inputs]), torch.cat([dense, dense])).difference()
    assert pair is not None
    lost = (dense - inputs)[0]
    torch.testing.assert_close(pair[0], lost.T @ inputs[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pair[1], lost.T @ lost, rtol=1e-4, atol=1e-4)


def test_what_is_not_kept_of_a_dense_model_cannot_be_asked_for_there() -> None:
    class Other(InputNorm):
        pass

    check_kept("dense", Wanda(), [InputNorm, Moments, Gram, PairedGram])
    check_kept("two-pass", WandaPlusPlus(), [Other])
    with pytest.raises(ConfigError, match=r"of inputs, and Other asks for more\. Set --order"):
        check_kept("dense", Wanda(), [Other])
    with pytest.raises(ConfigError, match=r"wanda\+\+, which looks at whole blocks, asks for more"):
        check_kept("dense", WandaPlusPlus(), [InputNorm])


@given(st.integers(1, 40))
def test_half_the_room_holds_a_triangle(size: int) -> None:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(size))
    half = folded(matrix)
    assert half.numel() == -(-size // 2) * (size + 1)
    assert half.count_nonzero() == size * (size + 1) // 2
    assert torch.equal(unfolded(half), matrix.triu())


@pytest.mark.parametrize("kind", [InputNorm, Moments, Gram])
def test_what_was_kept_of_a_statistic_makes_it_again(kind: type[Statistic]) -> None:
    weight, inputs = a_layer(0)
    counted, again = kind(16, CPU), kind(16, CPU)
    counted.update(inputs, 1)
    again.restore(counted.tensors(), counted.samples)
    again.update(inputs, 1)
    counted.update(inputs, 1)
    assert torch.equal(again.output_energy(weight), counted.output_energy(weight))
    assert again.samples == counted.samples
