"""Perplexity on held-out text, as the pruning literature measures it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from spp_cli.data.tokens import check_vocabulary
from spp_cli.errors import DataError, NumericalError
from spp_cli.evaluation.batches import within_memory
from spp_cli.models.cross_entropy import token_losses
from spp_cli.progress import Reporter

__all__ = ["Perplexity", "exp_nats", "perplexity"]

LOGITS_AT_ONCE = 2**28  # elements: one sequence of 2048 tokens with a vocabulary of 128k
PARTS = 64  # of a text, at most: enough to know how far its mean can be trusted


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text; the number means nothing without ``length``."""

    perplexity: float  # exp(nats)
    nats: float  # mean cross-entropy a predicted token
    tokens: int  # tokens predicted: length - 1 in each chunk
    length: int  # tokens a chunk, the first of which is only context
    parts: list[float]  # nats of the text in PARTS parts or fewer: two models' vary together


def perplexity(
    model: Any, tokens: Tensor, *, batch_size: int | Literal["auto"], reporter: Reporter
) -> Perplexity:
    """Return the perplexity of a causal language model on chunks of a text.

    Every chunk stands alone; its first token is given, the others are predicted. The mean is over
    all predicted tokens, in float32, whatever the type of the model. Batches are smaller than
    ``batch_size`` where their logits would not fit in about a gigabyte.

    Args:
        model: a transformers model whose call gives ``logits`` (batch, length, vocabulary).
        tokens: (chunks, length), token ids.
        batch_size: the most chunks in one forward pass; "auto": as many as memory holds.

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
    most = max(1, LOGITS_AT_ONCE // (length * vocabulary))
    losses: list[float] = []  # in nats, of each chunk that is done
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), reporter.task(f"perplexity@{length}", chunks, "chunks") as task:

            def measure(rows: int) -> None:
                for batch in tokens[len(losses) :].split(rows):
                    found = _losses(model, batch.to(model.device)).tolist()
                    _refuse_infinite(found, len(losses), chunks)
                    losses.extend(found)
                    so_far = exp_nats(sum(losses) / (len(losses) * (length - 1)))
                    task.advance(len(found), f"{so_far:.2f}")

            within_memory(measure, batch_size, model.device, most=most)
    finally:
        model.train(training)
    predicted = chunks * (length - 1)
    nats = sum(losses) / predicted
    return Perplexity(exp_nats(nats), nats, predicted, length, _by_part(losses, length))


def _by_part(losses: list[float], length: int) -> list[float]:
    """Return the mean nats a token of consecutive chunks; all parts but the last are as long."""
    chunks = -(-len(losses) // PARTS)
    parts = (losses[start : start + chunks] for start in range(0, len(losses), chunks))
    return [round(sum(part) / (len(part) * (length - 1)), 6) for part in parts]


def _refuse_infinite(losses: list[float], done: int, chunks: int) -> None:
    for number, loss in enumerate(losses, start=done + 1):
        if not math.isfinite(loss):
            raise NumericalError(
                f"the loss of chunk {number} of {chunks} is {loss}: the model "
                "computes NaN or infinity. Try --device cpu, which computes in float32, or check "
                "its weights"
            )


def _losses(model: Any, batch: Tensor) -> Tensor:
    """Return the summed cross-entropy of each row in nats: (batch,), float64."""
    logits = model(input_ids=batch, use_cache=False).logits
    return token_losses(logits, batch).sum(dim=1, dtype=torch.float64)


def exp_nats(nats: float) -> float:
    """Return exp(nats), infinity where a float cannot hold it."""
    return math.exp(nats) if nats < 709 else math.inf
