"""Perplexity on held-out text, as the pruning literature measures it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spp_cli.data.tokens import check_vocabulary
from spp_cli.errors import DataError, NumericalError
from spp_cli.progress import Reporter

__all__ = ["Perplexity", "exp_nats", "perplexity"]

LOGITS_AT_ONCE = 2**28  # elements: one sequence of 2048 tokens with a vocabulary of 128k
TOKENS_AT_ONCE = 256  # whose logits are float32 at the same time


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text; the number means nothing without ``length``."""

    perplexity: float  # exp(nats)
    nats: float  # mean cross-entropy a predicted token
    tokens: int  # tokens predicted: length - 1 in each chunk
    length: int  # tokens a chunk, the first of which is only context


def perplexity(model: Any, tokens: Tensor, *, batch_size: int, reporter: Reporter) -> Perplexity:
    """Return the perplexity of a causal language model on chunks of a text.

    Every chunk stands alone; its first token is given, the others are predicted. The mean is over
    all predicted tokens, in float32, whatever the type of the model. Batches are smaller than
    ``batch_size`` where their logits would not fit in about a gigabyte.

    Args:
        model: a transformers model whose call gives ``logits`` (batch, length, vocabulary).
        tokens: (chunks, length), token ids.
        batch_size: the most chunks in one forward pass.

    Raises:
        DataError: there is no token to predict.
        ModelError: a token id lies outside the model's vocabulary.
        NumericalError: NaN or infinity in the loss; names the chunk, counted from 1.
    """
    chunks, length = tokens.shape
    if chunks == 0 or length < 2:
        raise DataError(
            f"perplexity needs a chunk of at least 2 tokens, found {chunks} of {length}. "
            "Give more text, or lower eval.perplexity.sequence_length"
        )
    check_vocabulary(int(tokens.max()), model.config)
    vocabulary = model.config.get_text_config().vocab_size
    rows = max(1, min(batch_size, LOGITS_AT_ONCE // (length * vocabulary)))
    total, done = 0.0, 0
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), reporter.task(f"perplexity@{length}", chunks, "chunks") as task:
            for batch in tokens.split(rows):
                losses = _losses(model, batch.to(model.device)).tolist()
                for offset, loss in enumerate(losses, start=1):
                    if not math.isfinite(loss):
                        raise NumericalError(
                            f"the loss of chunk {done + offset} of {chunks} is {loss}: the model "
                            "computes NaN or infinity. Try --dtype float32, or check its weights"
                        )
                total, done = total + sum(losses), done + len(losses)
                task.advance(len(losses), f"{exp_nats(total / (done * (length - 1))):.2f}")
    finally:
        model.train(training)
    predicted = chunks * (length - 1)
    return Perplexity(exp_nats(total / predicted), total / predicted, predicted, length)


def _losses(model: Any, batch: Tensor) -> Tensor:
    """Return the summed cross-entropy of each row in nats: (batch,), float64."""
    logits = model(input_ids=batch, use_cache=False).logits
    targets = batch.to(logits.device)[:, 1:]
    losses = []
    for scores, predicted in zip(logits[:, :-1], targets, strict=True):
        pieces = zip(scores.split(TOKENS_AT_ONCE), predicted.split(TOKENS_AT_ONCE), strict=True)
        sums = [
            functional.cross_entropy(piece.float(), ids, reduction="sum") for piece, ids in pieces
        ]
        losses.append(torch.stack(sums).sum(dtype=torch.float64))
    return torch.stack(losses)


def exp_nats(nats: float) -> float:
    """Return exp(nats), infinity where a float cannot hold it."""
    return math.exp(nats) if nats < 709 else math.inf
