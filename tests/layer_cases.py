"""Layers to prune in tests: inputs that resemble each other, their Gram matrix, plain errors."""

from __future__ import annotations

import torch
from torch import Tensor

from spp_cli.pruning.method import Pruned, PruningMethod
from spp_cli.pruning.statistics import Moments, PairedGram
from spp_cli.sparsity.patterns import NofM, Pattern, Unstructured

PATTERNS: list[Pattern] = [Unstructured(0.5), Unstructured(0.75), NofM(2, 4), NofM(2, 8)]


def a_layer(seed: int, rows: int = 6, columns: int = 16, tokens: int = 80) -> tuple[Tensor, Tensor]:
    """Return a weight (rows, columns) and correlated inputs (1, tokens, columns)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(1, tokens, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), inputs


def gram_of(inputs: Tensor, dense: Tensor | None = None) -> PairedGram:
    """Return what is known of ``inputs`` (samples, tokens, in_features), and of the dense ones."""
    gram = PairedGram(inputs.shape[-1], inputs.device)
    for number, sample in enumerate(inputs):
        gram.update(sample[None], samples=1)
        if dense is not None:
            gram.compare(sample, dense[number])
    return gram


def moments_of(inputs: Tensor) -> Moments:
    """Return the means and variances of ``inputs`` (samples, tokens, in_features)."""
    moments = Moments(inputs.shape[-1], inputs.device)
    for sample in inputs:
        moments.update(sample[None], samples=1)
    return moments


def prune(
    method: PruningMethod,
    weight: Tensor,
    pattern: Pattern,
    inputs: Tensor,
    dense: Tensor | None = None,
) -> Pruned:
    return method.prune(weight, method.prepare(gram_of(inputs, dense)), pattern)


def squared_error(
    weight: Tensor, wanted: Tensor, inputs: Tensor, dense: Tensor | None = None
) -> float:
    """Return ‖X W'ᵀ − Y Wᵀ‖², in float64."""
    dense = inputs if dense is None else dense
    given = inputs.double() @ weight.double().T
    return float((given - dense.double() @ wanted.double().T).square().sum())
