"""Gradients of a language model's loss by its linears, one decoder block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from spp_cli.errors import ModelError
from spp_cli.models.activations import ActivationStore
from spp_cli.models.calls import BlockCalls, capture_calls
from spp_cli.models.decoder import Linear
from spp_cli.models.heap import return_free_memory
from spp_cli.models.streaming import BlockSource

__all__ = ["loss_gradients"]


def loss_gradients(
    source: BlockSource,
    sequences: Sequence[Tensor],
    of_block: Sequence[Sequence[Linear]],
    *,
    device: torch.device,
    activations: ActivationStore,
    shift: Callable[[Linear], Tensor] | None = None,
    on_block: Callable[[], None],
) -> Iterator[tuple[Linear, Tensor]]:
    """Yield the gradient of each sequence's mean cross-entropy by each weight, last block first.

    The text flows forward through the blocks once, and the input of each is kept. Then each block
    is loaded again, in reverse, and computes its output from that input anew, through which the
    gradient of its output becomes those of its weights and of its input.

    Args:
        sequences: tokens, (1, length) each.
        of_block: the linears of each block.
        activations: empty; takes the inputs of all blocks, and the output of the last.
        shift: gives what is added to a linear's weight, (out_features, in_features).
        on_block: called when a block is done, forward and backward.

    Yields:
        A linear and its gradient, (out_features, in_features) float32, of each sequence in turn;
        not those of an expert that it does not reach.
    """
    placed = [sequence.to(device) for sequence in sequences]
    count = len(placed)
    calls = _flow_forward(source, placed, of_block, device, activations, shift, on_block)
    # From here on the gradient by what a block puts out is kept in place of the last output.
    flowing = range(len(activations) - count, len(activations))
    source.place_head(device)
    for tokens, at in zip(placed, flowing, strict=True):
        states = activations[at].detach().requires_grad_()
        with torch.enable_grad():
            loss = _loss(calls.logits(source.decoder, states, tokens), tokens)
        (activations[at],) = torch.autograd.grad(loss, states)
    source.free_head()
    for index in reversed(range(len(of_block))):
        linears = of_block[index]
        with _loaded(source, index, device, linears, shift) as block:
            for number, at in enumerate(flowing):
                states = activations[index * count + number].detach().requires_grad_()
                weights = [linear.parameter.requires_grad_() for linear in linears]
                with torch.enable_grad():
                    output = calls.run_on(states, block, index, number)
                activations[at], *found = torch.autograd.grad(
                    output, [states, *weights], activations[at], allow_unused=True
                )
                found.reverse()
                for linear in linears:
                    linear.parameter.requires_grad_(False)
                    gradient = found.pop()  # let go: else two sequences' would be held at once
                    if gradient is not None:
                        predicted = placed[number].numel() - 1
                        yield linear, linear.as_stored(gradient).float().div_(predicted)
                return_free_memory()
        on_block()


@torch.no_grad()
def _flow_forward(
    source: BlockSource,
    sequences: Sequence[Tensor],
    of_block: Sequence[Sequence[Linear]],
    device: torch.device,
    activations: ActivationStore,
    shift: Callable[[Linear], Tensor] | None,
    on_block: Callable[[], None],
) -> BlockCalls:
    """Keep the inputs of all blocks, then the output of the last; return how they are called."""
    source.place_shell(device)
    source.load(0, device)
    calls = capture_calls(source.decoder, sequences, activations)
    if calls.carried:
        raise ModelError(
            f"the blocks of a {source.model.config.model_type} model hand more to the next than "
            "hidden states, and no gradient is taken through that. Choose another prune.allocation"
        )
    for index, linears in enumerate(of_block):
        with _loaded(source, index, device, linears, shift) as block:
            for number in range(len(sequences)):
                states = activations[index * len(sequences) + number]
                activations.append(calls.run_on(states, block, index, number))
        on_block()
    return calls


def _loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the summed cross-entropy of a sequence: its mean would vanish in float16."""
    targets = tokens[0, 1:].to(logits.device)
    return functional.cross_entropy(logits[0, :-1].float(), targets, reduction="sum")


@contextmanager
def _loaded(
    source: BlockSource,
    index: int,
    device: torch.device,
    linears: Sequence[Linear],
    shift: Callable[[Linear], Tensor] | None,
) -> Iterator[nn.Module]:
    """Bring a block to ``device``, its weights shifted; leave them as they were."""
    block = source.load(index, device)
    dense = [linear.parameter.data for linear in linears]
    if shift is not None:
        for linear in linears:
            linear.parameter.data = linear.as_stored(linear.weight + shift(linear))
    try:
        yield block
    finally:
        for linear, weight in zip(linears, dense, strict=True):
            linear.parameter.data = weight
        source.free(index)
