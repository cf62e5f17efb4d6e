"""What is known of a layer's inputs, summed in float32 while calibration text flows through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

from spp_cli import processes
from spp_cli.deferred import Tensor, torch

_NARROWEST_PANEL = 256

__all__ = [
    "Gram",
    "InputNorm",
    "Moments",
    "PairedGram",
    "Statistic",
    "fewest",
    "folded",
    "unfolded",
]


class Statistic(ABC):
    """A running summary of the inputs of one or more linears that read the same tensor.

    ``reads_dense``: whether it also wants to see the inputs that the dense block gives them, where
    those that come to them are no longer the same.
    """

    reads_dense: ClassVar[bool] = False

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.samples = 0

    @abstractmethod
    def update(self, inputs: Tensor, samples: int) -> None:
        """Count in ``inputs`` (sequences, tokens, in_features), float32.

        ``samples`` is the number of sequences that gave them; ``inputs`` has fewer where it holds
        tokens from here and there.
        """

    def compare(self, inputs: Tensor, dense: Tensor) -> None:
        """Count in, beside ``inputs``, what the dense block gives for them: (tokens, in_features).

        Called after ``update``, if the statistic ``reads_dense`` and the order of pruning knows.
        """
        raise NotImplementedError

    def add_up(self) -> None:
        """Make what each process has counted what all together have."""
        processes.add_up(value for value in vars(self).values() if isinstance(value, torch.Tensor))
        self.samples = sum(processes.collect(self.samples))

    @classmethod
    def elements(cls, in_features: int) -> int:
        """Return how many numbers are held for ``in_features`` inputs."""
        return in_features

    def tensors(self) -> dict[str, Tensor]:
        """Return all that was counted but ``samples``, by name: to be kept."""
        named = ((name.lstrip("_"), value) for name, value in vars(self).items())
        return {name: value for name, value in named if isinstance(value, torch.Tensor)}

    def restore(self, tensors: Mapping[str, Tensor], samples: int) -> None:
        """Become what ``tensors`` returned of another, of ``samples`` samples."""
        self.samples = samples
        for name, value in tensors.items():
            setattr(self, f"_{name}", value)

    @abstractmethod
    def is_finite(self) -> bool:
        """Return whether no NaN or infinity went in."""

    @abstractmethod
    def output_energy(self, weight: Tensor) -> Tensor:
        """Return the sum of squares of the outputs of ``weight`` (rows, in_features), float32.

        Over the tokens of all samples, up to a factor that is the same for all weights.
        """


def fewest(kinds: Iterable[type[Statistic] | None]) -> list[type[Statistic]]:
    """Return the kinds that do for all of ``kinds``, each once: one does for what it derives from.

    None, which asks for nothing, is left out.
    """
    asked = dict.fromkeys(kind for kind in kinds if kind is not None)
    return [
        kind
        for kind in asked
        if not any(other is not kind and issubclass(other, kind) for other in asked)
    ]


class InputNorm(Statistic):
    """Mean over samples of the sum over tokens of x², for each input: (in_features,)."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._total = torch.zeros(in_features, device=device)

    def update(self, inputs: Tensor, samples: int) -> None:
        self._total += inputs.flatten(0, -2).square().sum(dim=0)
        self.samples += samples

    def is_finite(self) -> bool:
        return bool(self._total.isfinite().all())

    def norm(self) -> Tensor:
        """Return the square root of the mean: (in_features,)."""
        return (self._total / self.samples).sqrt()

    def output_energy(self, weight: Tensor) -> Tensor:
        """Return it as if the inputs were uncorrelated: Σ W²ᵢⱼ ‖xⱼ‖²."""
        return torch.linalg.vector_norm(weight, dim=0).square() @ self._total


class Gram(Statistic):
    """(2 / samples) · Σ xᵀx, the Hessian of the squared error: (in_features, in_features)."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._total = torch.zeros(in_features, in_features, device=device)

    def update(self, inputs: Tensor, samples: int) -> None:
        _add_products(self._total, inputs.flatten(0, -2))
        self.samples += samples

    def is_finite(self) -> bool:
        return bool(self._total.isfinite().all())

    def tensors(self) -> dict[str, Tensor]:
        return {"folded": folded(self._total)}

    def restore(self, tensors: Mapping[str, Tensor], samples: int) -> None:
        super().restore({"total": unfolded(tensors["folded"])}, samples)

    @classmethod
    def elements(cls, in_features: int) -> int:
        return in_features * in_features

    def output_energy(self, weight: Tensor) -> Tensor:
        """Return the trace of W XᵀX Wᵀ: exact."""
        upper = self._total.triu()  # each pair of inputs once, so what is off the diagonal twice
        diagonal = torch.linalg.vector_norm(weight, dim=0).square() @ upper.diagonal()
        return 2 * ((weight @ upper) * weight).sum() - diagonal

    def hessian(self) -> Tensor:
        """Return a new tensor (in_features, in_features)."""
        return _symmetric(self._total) * (2 / self.samples)

    def norm(self) -> Tensor:
        """Return what ``InputNorm.norm`` returns: (in_features,)."""
        return (self._total.diagonal() / self.samples).sqrt()


class PairedGram(Gram):
    """As ``Gram``, and how far the inputs x are from those that the dense block gives, y.

    What is held of that, Σ (y − x)ᵀx and Σ (y − x)ᵀ(y − x), is there once an input differs.
    """

    reads_dense: ClassVar[bool] = True

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._cross: Tensor | None = None
        self._square: Tensor | None = None

    def compare(self, inputs: Tensor, dense: Tensor) -> None:
        difference = dense - inputs
        if not difference.any():
            return
        cross, square = self._differing()
        cross.addmm_(difference.T, inputs)
        _add_products(square, difference)

    def add_up(self) -> None:
        if any(processes.collect(self._cross is not None)):
            self._differing()
        super().add_up()

    def _differing(self) -> tuple[Tensor, Tensor]:
        if self._cross is None or self._square is None:
            self._cross = torch.zeros_like(self._total)
            self._square = torch.zeros_like(self._total)
        return self._cross, self._square

    def is_finite(self) -> bool:
        return super().is_finite() and (self._cross is None or bool(self._cross.isfinite().all()))

    @classmethod
    def elements(cls, in_features: int) -> int:
        return 3 * in_features * in_features

    def difference(self) -> tuple[Tensor, Tensor] | None:
        """Return (2 / samples) times Σ (y − x)ᵀx and Σ (y − x)ᵀ(y − x); None if y is always x."""
        if self._cross is None or self._square is None:
            return None
        share = 2 / self.samples
        return self._cross * share, _symmetric(self._square) * share


def _add_products(total: Tensor, rows: Tensor) -> None:
    """Add Σ xᵀx over ``rows`` to ``total``, which is right in its upper triangle alone.

    Done in panels of rows; what lies on the left of a panel is not computed. With four panels that
    is three eighths of the products.
    """
    size = len(total)
    width = max(_NARROWEST_PANEL, -(-size // 4))
    for start in range(0, size, width):
        end = min(start + width, size)
        total[start:end, start:].addmm_(rows[:, start:end].T, rows[:, start:])


def _symmetric(upper: Tensor) -> Tensor:
    """Return the symmetric matrix whose upper triangle is that of ``upper``."""
    return upper.triu() + upper.triu(1).T


def folded(upper: Tensor) -> Tensor:
    """Return the upper triangle of a matrix (size, size) in half the room.

    (⌈size / 2⌉, size + 1): row i is that of the triangle, and before it, in the gap that it leaves,
    the last row but i, backwards.
    """
    size = len(upper)
    half = -(-size // 2)
    gap = upper.new_zeros(half, 1)
    rows = torch.cat([gap, upper[:half].triu()], dim=1)
    last = torch.cat([upper[size - half :].flip(0, 1).tril(), gap], dim=1)
    if size % 2:  # the row in the middle is its own partner, and is there once already
        last[-1] = 0
    return rows + last


def unfolded(rows: Tensor) -> Tensor:
    """Return the upper triangle that ``folded`` was given: (size, size), zero below."""
    size = rows.shape[1] - 1
    last = rows[: size // 2, :size].tril().flip(0, 1)
    return torch.cat([rows[:, 1:].triu(), last])


class Moments(InputNorm):
    """Sum over tokens, averaged over samples, and variance of each input: (in_features,) both.

    The variance is the mean over samples of each sequence's own (population) variance; tokens from
    here and there count as one sequence.
    """

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._sum = torch.zeros(in_features, device=device)
        self._variance = torch.zeros(in_features, device=device)

    def update(self, inputs: Tensor, samples: int) -> None:
        super().update(inputs, samples)
        self._sum += inputs.sum(dim=(0, 1))
        self._variance += inputs.var(dim=1, correction=0).mean(dim=0) * samples

    def mean(self) -> Tensor:
        """Return the sum over a sequence's tokens, averaged over samples."""
        return self._sum / self.samples

    def variance(self) -> Tensor:
        """Return the variance within a sequence, averaged over samples."""
        return self._variance / self.samples
