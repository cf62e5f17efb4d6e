"""What is known of a layer's inputs, summed in float32 while calibration text flows through."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Gram", "InputNorm", "Moments", "Statistic"]


class Statistic(ABC):
    """A running summary of the inputs of one or more linears that read the same tensor."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.samples = 0

    @abstractmethod
    def update(self, inputs: Tensor, samples: int) -> None:
        """Count in ``inputs`` (tokens, in_features), float32, that ``samples`` sequences gave."""

    @abstractmethod
    def is_finite(self) -> bool:
        """Return whether no NaN or infinity went in."""


class InputNorm(Statistic):
    """Mean over samples of the sum over tokens of x², for each input: (in_features,)."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._total = torch.zeros(in_features, device=device)

    def update(self, inputs: Tensor, samples: int) -> None:
        self._total += inputs.square().sum(dim=0)
        self.samples += samples

    def is_finite(self) -> bool:
        return bool(self._total.isfinite().all())

    def norm(self) -> Tensor:
        """Return the square root of the mean: (in_features,)."""
        return (self._total / self.samples).sqrt()


class Gram(Statistic):
    """(2 / samples) · Σ xᵀx, the Hessian of the squared error: (in_features, in_features)."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._total = torch.zeros(in_features, in_features, device=device)

    def update(self, inputs: Tensor, samples: int) -> None:
        self._total.addmm_(inputs.T, inputs)
        self.samples += samples

    def is_finite(self) -> bool:
        return bool(self._total.isfinite().all())

    def hessian(self) -> Tensor:
        """Return a new tensor (in_features, in_features)."""
        return self._total * (2 / self.samples)


class Moments(InputNorm):
    """Sum over tokens, averaged over samples, and variance of each input: (in_features,) both.

    The variance is the mean over samples of each sequence's own (population) variance. An expert
    gets some tokens of each sequence, and is not told of which: they count as one sequence.
    """

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._sum = torch.zeros(in_features, device=device)
        self._variance = torch.zeros(in_features, device=device)

    def update(self, inputs: Tensor, samples: int) -> None:
        super().update(inputs, samples)
        told_apart = samples if len(inputs) % samples == 0 else 1
        sequences = inputs.view(told_apart, -1, inputs.shape[-1])
        self._sum += inputs.sum(dim=0)
        self._variance += sequences.var(dim=1, correction=0).mean(dim=0) * samples

    def mean(self) -> Tensor:
        """Return the sum over a sequence's tokens, averaged over samples."""
        return self._sum / self.samples

    def variance(self) -> Tensor:
        """Return the variance within a sequence, averaged over samples."""
        return self._variance / self.samples
