"""How a model calls its decoder blocks: captured once, so that each block can then be run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, cycle
from typing import Any

import torch
from torch import Tensor, nn

from spp_cli.errors import ModelError
from spp_cli.models.activations import ActivationStore
from spp_cli.models.decoder import Decoder

__all__ = ["BlockCalls", "capture_calls"]


@dataclass(frozen=True)
class _Carried:
    """Stands in recorded arguments for a tensor that a block returned besides hidden states."""

    block: int
    place: int  # among the tensors of what it returned


@dataclass
class BlockCalls:
    """What each batch brings to each block.

    ``hidden_states``: a batch's input to the first block, (sequences, tokens, hidden_size).
    ``shapes``: sequences and tokens of each batch.
    ``arguments``: for each block, then each batch, the other arguments of its call. If it takes
    ``hidden_states`` by name, that is among them, and None.
    ``forms``: what the first block returned for a batch of each shape, without the hidden states;
    all blocks return in this form.
    ``carried``: those of the tensors in it that later blocks are called with, and the last block
    that is. They are kept for each batch, as the block returned them last, and handed on.
    """

    hidden_states: ActivationStore | list[Tensor]
    shapes: list[tuple[int, int]]
    arguments: list[list[tuple[tuple[Any, ...], dict[str, Any]]]]
    forms: dict[tuple[int, int], Any] = field(default_factory=dict)
    carried: dict[_Carried, int] = field(default_factory=dict)
    _kept: list[dict[_Carried, Tensor]] = field(default_factory=list)

    def run(self, block: nn.Module, index: int, batch: int) -> Tensor:
        """Return the output of ``block``, which is the ``index``-th, for one batch."""
        return self.run_on(self.hidden_states[batch], block, index, batch)

    def run_on(self, hidden_states: Tensor, block: nn.Module, index: int, batch: int) -> Tensor:
        """Return what ``run`` does if ``hidden_states`` come to the block.

        Raises:
            ModelError: the block returns what no block did when the calls were captured.
        """
        args, kwargs = self.arguments[index][batch]
        if self.carried:
            args, kwargs = _filled((args, kwargs), self._kept[batch])
        if "hidden_states" in kwargs:  # by its name: it may not be the first that a block takes
            output = block(*args, **{**kwargs, "hidden_states": hidden_states})
        else:
            output = block(hidden_states, *args, **kwargs)
        self._keep(output, index, batch)
        return _first(output)

    def run_first(self, block: nn.Module, index: int) -> Tensor:
        """Return what a block makes of the first batch's input to the first block.

        It is handed what the first block returned. That is not what it would be given, but enough
        to see what it computes with.
        """
        tail = _tail(self.forms[self.shapes[0]])
        self._kept[0] |= {mark: tail[mark.place] for mark in self.carried}
        return self.run(block, index, 0)

    def _keep(self, output: Any, index: int, batch: int) -> None:
        """Keep what later blocks take of ``output``, and let go of what no later one does."""
        tail, expected = _tail(output), _tail(self.forms[self.shapes[batch]])
        if len(tail) > len(expected) or (self.carried and len(tail) < len(expected)):
            raise ModelError(
                f"decoder block {index} returns {len(tail)} tensors besides its hidden states, and "
                f"the first block {len(expected)}, so it cannot be run alone. "
                "Only --method magnitude prunes such a model"
            )
        kept = self._kept[batch]
        kept |= {mark: tail[mark.place].detach() for mark in self.carried if mark.block == index}
        for mark in [mark for mark in kept if self.carried[mark] < index]:
            del kept[mark]

    def logits(self, decoder: Decoder, hidden_states: Tensor, batch: Tensor) -> Tensor:
        """Return what the model makes of the last block's output for the tokens of ``batch``."""
        sequences, length = batch.shape
        form = self.forms[sequences, length]
        with _replaced(decoder, lambda *_, **__: _as_returned(hidden_states, form)):
            logits: Tensor = decoder.model(batch, use_cache=False).logits
        return logits

    def only(self, numbers: Sequence[int]) -> BlockCalls:
        """Return the calls of some of the batches, by their numbers."""
        return BlockCalls(
            [self.hidden_states[number] for number in numbers],
            [self.shapes[number] for number in numbers],
            [[of_block[number] for number in numbers] for of_block in self.arguments],
            self.forms,
            self.carried,
            [self._kept[number] for number in numbers],
        )

    def flow_through(self, block: nn.Module, index: int) -> None:
        """Replace the hidden states by the outputs of ``block``, which is the ``index``-th."""
        for batch in range(len(self.shapes)):
            self.hidden_states[batch] = self.run(block, index, batch)


def capture_calls(
    decoder: Decoder, batches: Iterable[Tensor], hidden_states: ActivationStore | list[Tensor]
) -> BlockCalls:
    """Return how the model calls every block for each of ``batches`` (sequences, tokens).

    The inputs to the first block are appended to ``hidden_states``.

    Blocks differ in what they are called with (masks of sliding windows, rotary embeddings of two
    kinds, names and positions of arguments), so each call is recorded as it is. The blocks
    themselves are stepped over, but for one run of the first for each shape, which shows the form
    in which they return: a bare tensor, a tuple or a list. Tensors in it that a later block is
    called with, such as which tokens it attends to, are each batch's, and are recorded as such.

    Raises:
        ModelError: some block does not take what the one before it returns, as it is.
    """
    calls = BlockCalls(hidden_states, [], [[] for _ in decoder.blocks])
    for input_ids in batches:
        _capture(decoder, input_ids, calls, _same)
        if len(calls.shapes) == 1 and _tail(calls.forms[calls.shapes[0]]):
            _check_handed_on(decoder, input_ids, calls)
    return calls


def _capture(
    decoder: Decoder,
    input_ids: Tensor,
    calls: BlockCalls,
    change: Callable[[Tensor], Tensor],
) -> None:
    """Record one batch in ``calls``; what blocks return besides hidden states is ``change``d."""
    original = decoder.blocks[0].forward
    passed: list[Tensor] = []  # what each block returned for this batch
    handed: dict[int, tuple[_Carried, Tensor]] = {}  # by identity of a returned tensor
    sequences, length = input_ids.shape
    shape = (sequences, length)

    def stand_in(index: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if shape not in calls.forms:
                calls.forms[shape] = _as_returned(torch.empty(0), original(*args, **kwargs))
            if args:
                hidden_states, args = args[0], args[1:]
            else:
                hidden_states = kwargs["hidden_states"]
                kwargs["hidden_states"] = None  # each run has its own
            if index == 0:
                calls.hidden_states.append(hidden_states)
            elif not (len(passed) == index and _equal(passed[-1], hidden_states)):
                raise _not_a_chain(decoder)
            passed.append(hidden_states)
            call = _marked((args, kwargs), handed, calls.carried, index)
            known = calls.arguments[index - 1][-1:] + calls.arguments[index][:1]
            calls.arguments[index].append(_share(call, [t for k in known for t in _leaves(k)]))
            return _handed_on(hidden_states, calls.forms[shape], index, change, handed)

        return forward

    with _replaced(decoder, *map(stand_in, range(len(decoder.blocks)))):
        decoder.model.base_model(input_ids, use_cache=False)
    if len(passed) != len(decoder.blocks):
        raise _not_a_chain(decoder)
    calls.shapes.append(shape)
    calls._kept.append({})


def _check_handed_on(decoder: Decoder, input_ids: Tensor, calls: BlockCalls) -> None:
    """Refuse a model that makes something else of what blocks return, before it hands it on.

    It is called a second time, its blocks returning other numbers: nothing may change but what was
    recognised.
    """
    again = BlockCalls([], [], [[] for _ in decoder.blocks], dict(calls.forms))
    _capture(decoder, input_ids, again, _other)
    for (first, *_), (second, *_) in zip(calls.arguments, again.arguments, strict=True):
        if not _alike(first, second):
            raise _not_a_chain(decoder)


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
    if not isinstance(returned, tuple | list):
        return hidden_states
    return _like(returned, [hidden_states, *returned[1:]])


def _like(value: Any, items: list[Any]) -> Any:
    """Return ``items`` as a tuple, named tuple or list, whichever ``value`` is."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _handed_on(
    hidden_states: Tensor,
    form: Any,
    index: int,
    change: Callable[[Tensor], Tensor],
    handed: dict[int, tuple[_Carried, Tensor]],
) -> Any:
    """Return what the ``index``-th block does, in tensors that are known again by ``handed``."""
    place = count()

    def fresh(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        new = change(item).clone()
        handed[id(new)] = (_Carried(index, next(place)), new)
        return new

    if not isinstance(form, tuple | list):
        return hidden_states
    return _like(form, [hidden_states, *(_mapped(item, fresh) for item in form[1:])])


def _marked(
    call: Any,
    handed: dict[int, tuple[_Carried, Tensor]],
    carried: dict[_Carried, int],
    index: int,
) -> Any:
    """Return the call of a block with a ``_Carried`` for each tensor that one before returned."""

    def marked(item: Any) -> Any:
        if id(item) not in handed:
            return item
        mark, _ = handed[id(item)]
        carried[mark] = index
        return mark

    return _mapped(call, marked) if handed else call


def _filled(call: Any, kept: dict[_Carried, Tensor]) -> Any:
    return _mapped(call, lambda item: kept[item] if isinstance(item, _Carried) else item)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _other(tensor: Tensor) -> Tensor:
    """Return other numbers of the same kind and range."""
    return tensor.flip(-1) + 1 if tensor.is_floating_point() else tensor.flip(-1)


def _tail(output: Any) -> list[Tensor]:
    """Return the tensors of what a block returned, without the hidden states, in order."""
    return _leaves(output[1:]) if isinstance(output, tuple | list) else []


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


def _alike(first: Any, second: Any) -> bool:
    """Whether two calls have equal tensors, and what stands for one, in the same places."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return _equal(first, second)
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        return len(first) == len(second) and all(map(_alike, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_alike(first[k], second[k]) for k in first)
    return type(first) is type(second) and (not isinstance(first, _Carried) or first == second)


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

    def shared(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        return next((tensor for tensor in known if _equal(tensor, item)), item)

    return _mapped(value, shared)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return ``value`` with what is inside its tuples, lists and dictionaries ``change``d."""
    if isinstance(value, tuple | list):
        return _like(value, [_mapped(item, change) for item in value])
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return change(value)
