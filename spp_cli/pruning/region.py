"""One dense decoder block and the text that comes to it, for methods that look at it as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spp_cli import processes
from spp_cli.models.calls import BlockCalls
from spp_cli.models.decoder import Linear
from spp_cli.pruning.inputs import Known
from spp_cli.pruning.orders import dense_inputs
from spp_cli.pruning.statistics import Statistic

__all__ = ["Region"]


class Region:
    """The ``index``-th block, its ``linears``, and the sequences that come to it one by one.

    Of several processes each has sequences of its own; what is summed here is summed over all.
    """

    def __init__(
        self, block: nn.Module, index: int, linears: Sequence[Linear], calls: BlockCalls
    ) -> None:
        self.index = index
        self.linears = linears
        self._block = block
        self._calls = calls

    def __len__(self) -> int:
        """Return how many sequences there are in this process."""
        return len(self._calls.shapes)

    @property
    def sequences(self) -> int:
        """How many there are in all processes."""
        return sum(processes.collect(len(self)))

    def output(self, number: int) -> Tensor:
        """Return what the block makes of a sequence: (1, tokens, hidden_size)."""
        return self._calls.run(self._block, self.index, number)

    def known(self, numbers: Sequence[int], kind: type[Statistic]) -> dict[str, Known | None]:
        """Return by linear what ``kind`` knows of its inputs from some of the sequences."""
        some = self._calls.only(numbers)
        return {
            linear.name: known
            for group, known in dense_inputs(self._block, self.index, self.linears, some, [kind])
            for linear in group
        }

    def gradients(self, number: int, loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return the gradient of a sequence's ``loss`` by each linear's weight, float32.

        ``loss`` takes what ``output`` returns. (out_features, in_features) each; zero for an expert
        that the sequence does not reach.
        """
        weights = [linear.parameter.requires_grad_() for linear in self.linears]
        try:
            with torch.enable_grad():
                value = loss(self.output(number))
            found = torch.autograd.grad(value, weights, allow_unused=True)
        finally:
            for weight in weights:
                weight.requires_grad_(False)
        return [
            linear.as_stored(torch.zeros_like(weight) if gradient is None else gradient).float()
            for linear, weight, gradient in zip(self.linears, weights, found, strict=True)
        ]

    @contextmanager
    def weights(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Have the block compute with other ``weights`` by linear, (out_features, in_features)."""
        own = [linear.weight.clone() for linear in self.linears]
        self.set(weights)
        try:
            yield
        finally:
            self.set({lin.name: weight for lin, weight in zip(self.linears, own, strict=True)})

    def set(self, weights: Mapping[str, Tensor]) -> None:
        """Give the linears new weights, rounded to the type that the block computes in."""
        for linear in self.linears:
            linear.weight.copy_(weights[linear.name])
