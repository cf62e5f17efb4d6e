"""How a model calls its decoder blocks: captured once, so that each block can then be run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from spp_cli.errors import ModelError
from spp_cli.models.activations import ActivationStore
from spp_cli.models.decoder import Decoder

__all__ = ["BlockCalls", "capture_calls"]


@dataclass
class BlockCalls:
    """What each batch brings to each block.

    ``hidden_states``: a batch's input to the first block, (sequences, tokens, hidden_size).
    ``shapes``: sequences and tokens of each batch.
    ``arguments``: for each block, then each batch, the other arguments of its call.
    ``returned``: what the first block returned once, without the hidden states in it; all blocks
    return in this form.
    """

    hidden_states: ActivationStore | list[Tensor]
    shapes: list[tuple[int, int]]
    arguments: list[list[tuple[tuple[Any, ...], dict[str, Any]]]]
    returned: Any = None

    def run(self, block: nn.Module, index: int, batch: int) -> Tensor:
        """Return the output of ``block``, which is the ``index``-th, for one batch."""
        return self.run_on(self.hidden_states[batch], block, index, batch)

    def run_on(self, hidden_states: Tensor, block: nn.Module, index: int, batch: int) -> Tensor:
        """Return what ``run`` does if ``hidden_states`` come to the block."""
        args, kwargs = self.arguments[index][batch]
        return _first(block(hidden_states, *args, **kwargs))

    def logits(self, decoder: Decoder, hidden_states: Tensor, batch: Tensor) -> Tensor:
        """Return what the model makes of the last block's output for the tokens of ``batch``."""
        with _replaced(decoder, lambda *_, **__: _as_returned(hidden_states, self.returned)):
            logits: Tensor = decoder.model(batch, use_cache=False).logits
        return logits

    def only(self, numbers: Sequence[int]) -> BlockCalls:
        """Return the calls of some of the batches, by their numbers."""
        return BlockCalls(
            [self.hidden_states[number] for number in numbers],
            [self.shapes[number] for number in numbers],
            [[of_block[number] for number in numbers] for of_block in self.arguments],
            self.returned,
        )

    def flow_through(self, block: nn.Module, index: int) -> None:
        """Replace the hidden states by the outputs of ``block``, which is the ``index``-th."""
        for batch in range(len(self.shapes)):
            self.hidden_states[batch] = self.run(block, index, batch)


def capture_calls(
    decoder: Decoder, batches: Iterable[Tensor], hidden_states: ActivationStore
) -> BlockCalls:
    """Return how the model calls every block for each of ``batches`` (sequences, tokens).

    The inputs to the first block are appended to ``hidden_states``.

    Blocks differ in what they are called with (masks of sliding windows, rotary embeddings of two
    kinds, names and positions of arguments), so each call is recorded as it is. The blocks
    themselves are stepped over, but for one run of the first, which shows the form in which they
    return: a bare tensor, a tuple or a list.

    Raises:
        ModelError: some block does not take what the one before it returns, as it is.
    """
    calls = BlockCalls(hidden_states, [], [[] for _ in decoder.blocks])
    original = decoder.blocks[0].forward
    passed: list[Tensor] = []  # what each block returned for the batch at hand

    def stand_in(index: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if calls.returned is None:
                calls.returned = _as_returned(torch.empty(0), original(*args, **kwargs))
            if args:
                hidden_states, args = args[0], args[1:]
            else:
                hidden_states = kwargs.pop("hidden_states")
            if index == 0:
                calls.hidden_states.append(hidden_states)
            elif not (len(passed) == index and _equal(passed[-1], hidden_states)):
                raise _not_a_chain(decoder)
            passed.append(hidden_states)
            known = calls.arguments[index - 1][-1:] + calls.arguments[index][:1]
            calls.arguments[index].append(
                _share((args, kwargs), [t for k in known for t in _leaves(k)])
            )
            return _as_returned(hidden_states, calls.returned)

        return forward

    with _replaced(decoder, *map(stand_in, range(len(decoder.blocks)))):
        for input_ids in batches:
            passed.clear()
            sequences, length = input_ids.shape
            calls.shapes.append((sequences, length))
            decoder.model.base_model(input_ids, use_cache=False)
            if len(passed) != len(decoder.blocks):
                raise _not_a_chain(decoder)
    return calls


@contextmanager
def _replaced(decoder: Decoder, *forwards: Callable[..., Any]) -> Iterator[None]:
    """Have ``forwards``, one for each block or one for all, stand in for those of the blocks."""
    for block, forward in zip(decoder.blocks, cycle(forwards), strict=False):
        block.forward = forward
    try:
        yield
    finally:
        for block in decoder.blocks:
            del block.forward


def _as_returned(hidden_states: Tensor, returned: Any) -> Any:
    """Return ``hidden_states`` in the form of what a block ``returned``."""
    if isinstance(returned, list):
        return [hidden_states, *returned[1:]]
    return (hidden_states, *returned[1:]) if isinstance(returned, tuple) else hidden_states


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple | list) else output
    return first


def _not_a_chain(decoder: Decoder) -> ModelError:
    return ModelError(
        f"the blocks of a {decoder.model.config.model_type} model ({decoder.path}) are not one "
        "chain, each called once with what the one before it gives, so none can be run alone. "
        "Only --method magnitude prunes it"
    )


def _equal(known: Tensor, tensor: Tensor) -> bool:
    same_kind = known.shape == tensor.shape and known.dtype == tensor.dtype
    return known is tensor or (same_kind and torch.equal(known, tensor))


def _leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _leaves(item)]
    if isinstance(value, dict):
        return _leaves(list(value.values()))
    return []


def _share(value: Any, known: list[Tensor]) -> Any:
    """Replace tensors equal to a known one by that one: all batches have the same masks."""
    if isinstance(value, Tensor):
        for tensor in known:
            if _equal(tensor, value):
                return tensor
        return value
    if isinstance(value, tuple | list):
        return type(value)(_share(item, known) for item in value)
    if isinstance(value, dict):
        return {key: _share(item, known) for key, item in value.items()}
    return value
