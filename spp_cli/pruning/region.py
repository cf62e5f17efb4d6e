"""One dense decoder block and the text that comes to it, for methods that look at it as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spp_cli import processes
from spp_cli.deferred import Tensor, torch
from spp_cli.pruning.statistics import Statistic

if TYPE_CHECKING:
    from torch import nn

    from spp_cli.models.calls import BlockCalls
    from spp_cli.models.decoder import Linear
    from spp_cli.pruning.inputs import Known

__all__ = ["Region"]

_ROUNDING = 1e-4  # of an output: far above what sums in another order change in float32
_GRADIENT_SCALES = (1.0, 2.0**-8, 2.0**-16)  # tried in turn where float16 cannot hold a gradient


class Region:
    """The ``index``-th block, its ``linears``, and the batches of sequences that come to it.

    Of several processes each has sequences of its own; what is summed here is summed over all.
    ``dense`` are the weights by linear that ``keep_dense`` has set aside, if it was called.
    """

    def __init__(
        self, block: nn.Module, index: int, linears: Sequence[Linear], calls: BlockCalls
    ) -> None:
        self.index = index
        self.linears = linears
        self.dense: Mapping[str, Tensor] = {}
        self._block = block
        self._calls = calls

    def __len__(self) -> int:
        """Return how many batches there are in this process."""
        return len(self._calls.shapes)

    @property
    def batches(self) -> int:
        """How many there are in all processes."""
        return sum(processes.collect(len(self)))

    def output(self, number: int) -> Tensor:
        """Return what the block makes of a batch: (sequences, tokens, hidden_size)."""
        return self._calls.run(self._block, self.index, number)

    def known(self, numbers: Sequence[int], kind: type[Statistic]) -> dict[str, Known | None]:
        """Return by linear what ``kind`` knows of its inputs from some of the batches."""
        from spp_cli.pruning.orders import dense_inputs  # not above: it needs transformers

        some = self._calls.only(numbers)
        return {
            linear.name: known
            for group, known in dense_inputs(self._block, self.index, self.linears, some, [kind])
            for linear in group
        }

    def gradients(self, number: int, loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return the gradient of a batch's ``loss`` by each linear's weight, float32.

        ``loss`` takes what ``output`` returns. (out_features, in_features) each; zero for an expert
        that the batch does not reach.
        """
        is_half = any(linear.weight.dtype == torch.float16 for linear in self.linears)
        for scale in _GRADIENT_SCALES:
            found = self._gradients(number, loss, scale)
            if not is_half or all(gradient.isfinite().all() for gradient in found):
                break
        return found

    def _gradients(
        self, number: int, loss: Callable[[Tensor], Tensor], scale: float
    ) -> list[Tensor]:
        """Return ``gradients``; on the way they are ``scale`` times as large."""
        weights = [linear.parameter.requires_grad_() for linear in self.linears]
        try:
            with torch.enable_grad():
                value = loss(self.output(number)) * scale
            found = torch.autograd.grad(value, weights, allow_unused=True)
        finally:
            for weight in weights:
                weight.requires_grad_(False)
        return [
            linear.as_stored(torch.zeros_like(weight) if gradient is None else gradient).float()
            / scale
            for linear, weight, gradient in zip(self.linears, weights, found, strict=True)
        ]

    def fold(self, linear: Linear, order: Tensor) -> bool:
        """Put the inputs of a linear into another order, and the outputs of those that make them.

        What the block computes stays the same. Returns False, and leaves all as it was, where it
        would not: where an input is not made of the same one output of each linear beside it that
        has as many (as ``down_proj``'s are of those of ``gate_proj`` and ``up_proj``), or where one
        of them has a bias, which is not written anew.

        Args:
            order: input ``order[j]`` becomes input j, (in_features,).
        """
        beside = linear.name.rpartition(".")[0]
        makers = [
            other
            for other in self.linears
            if other is not linear
            and other.name.rpartition(".")[0] == beside
            and len(other.weight) == linear.in_features
        ]
        if not makers or any(maker.bias is not None for maker in makers):
            return False
        others = [each for each in self.linears if each not in makers]
        before = self._outputs(others, linear)
        own = [each.weight.clone() for each in (linear, *makers)]
        linear.weight.copy_(own[0][:, order])
        for maker, weight in zip(makers, own[1:], strict=True):
            maker.weight.copy_(weight[order])
        after = self._outputs(others, linear)
        is_same = linear.name in before and all(
            name in after and _is_near(after[name], output) for name, output in before.items()
        )
        if not processes.agree_on_lowest(int(is_same)):
            for each, weight in zip((linear, *makers), own, strict=True):
                each.weight.copy_(weight)
            return False
        return True

    def _outputs(self, linears: Sequence[Linear], until: Linear) -> dict[str, Tensor]:
        """Return what linears make of the first batch that reaches each, until one is reached."""
        seen: dict[str, Tensor] = {}

        def hook_for(name: str) -> Callable[..., None]:
            def see(module: nn.Module, args: Any, output: Tensor) -> None:
                if output.numel():
                    seen.setdefault(name, output)

            return see

        hooks = [each.module.register_forward_hook(hook_for(each.name)) for each in linears]
        try:
            for number in range(len(self)):
                self.output(number)
                if until.name in seen:
                    break
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def keep_dense(self) -> None:
        """Set the weights aside, as ``dense``, for all that comes after a method has moved them."""
        self.dense = {linear.name: linear.weight.clone() for linear in self.linears}

    def set(self, weights: Mapping[str, Tensor]) -> None:
        """Give the linears other weights by name, rounded to the type that the block has."""
        for linear in self.linears:
            linear.weight.copy_(weights[linear.name])


def _is_near(after: Tensor, before: Tensor) -> bool:
    """Whether two outputs differ by rounding alone; an expert may have been given other tokens."""
    if after.shape != before.shape:
        return False
    distance = torch.linalg.vector_norm((after - before).float())
    share = max(_ROUNDING, torch.finfo(before.dtype).eps)
    return bool(distance <= share * torch.linalg.vector_norm(before.float()))
