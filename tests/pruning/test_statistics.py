"""What statistics tell of inputs, and which of them does for which others."""

from __future__ import annotations

import torch
from layer_cases import a_layer, gram_of

from spp_cli.pruning.statistics import Gram, InputNorm, Moments, PairedGram, fewest

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
