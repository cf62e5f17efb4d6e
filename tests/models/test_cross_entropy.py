"""The loss of each token from the logits: its value, its gradient, its memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from spp_cli.models.cross_entropy import IGNORED, token_losses


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 99), st.booleans())
def test_values_and_gradients_are_those_of_torch_in_float32(sequences, length, seed, masked):
    torch.manual_seed(seed)
    logits = torch.randn(sequences, length, 11, requires_grad=True)
    labels = torch.randint(11, (sequences, length))
    if masked:
        labels[torch.rand(sequences, length) < 0.5] = IGNORED
    found = token_losses(logits, labels)
    assert found.shape == (sequences, length)
    assert not found[:, -1].any()
    pairs = zip(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), strict=True)
    expected = [
        cross_entropy(scores, label, ignore_index=IGNORED, reduction="sum")
        for scores, label in pairs
    ]
    if not expected:
        return
    torch.testing.assert_close(found[:, :-1].flatten(), torch.stack(expected))
    weights = torch.randn(len(expected))
    ours, theirs = (
        torch.autograd.grad((losses * weights).sum(), logits, retain_graph=True)[0]
        for losses in (found[:, :-1].flatten(), torch.stack(expected))
    )
    torch.testing.assert_close(ours, theirs)


def test_what_does_not_count_has_no_gradient_even_where_logits_are_nan():
    logits = torch.randn(1, 4, 5)
    logits[0, 2] = torch.nan
    logits.requires_grad_()
    found = token_losses(logits, torch.tensor([[1, 2, 3, IGNORED]]))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient[0, :2].abs().sum() > 0
    assert not gradient[0, 2:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_neither_loss_nor_gradient_holds_a_float32_copy_of_all_logits(dtype):
    logits = torch.randn(2, 700, 5000, dtype=dtype, requires_grad=True)
    labels = torch.randint(5000, (2, 700))
    sizes = []

    def saved(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        found = token_losses(logits, labels)
    assert max(sizes) == logits.numel() * 2
    (gradient,) = torch.autograd.grad(found.mean(), logits)
    exact = torch.nn.functional.cross_entropy(
        logits[:, :-1].double().flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    torch.testing.assert_close(found.double().sum(), exact, rtol=1e-6, atol=0)
    assert gradient.dtype == dtype
