"""How badly a language model predicts each token, from its logits, in little memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["IGNORED", "predicted", "token_losses"]

IGNORED = -100  # the label of a token whose prediction does not count
_TOKENS_AT_ONCE = 256  # whose logits are in float32 at the same time


def predicted(labels: Tensor) -> Tensor:
    """Return what is to be predicted at each token of ``labels`` (sequences, tokens): the next.

    At the last token of a sequence, and where the next does not count, it is ``IGNORED``.
    """
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy in nats of what is predicted at each token, float32.

    Args:
        logits: (sequences, tokens, vocabulary), of any floating-point type.
        labels: (sequences, tokens): token ids, or ``IGNORED``.

    Returns:
        (sequences, tokens), of which those without a prediction that counts are 0. Neither it nor
        its gradient takes a float32 copy of all logits.
    """
    targets = predicted(labels.to(logits.device))
    losses: Tensor = _CrossEntropy.apply(logits.flatten(0, 1), targets.flatten())
    return losses.view_as(targets)


class _CrossEntropy(torch.autograd.Function):
    """−log softmax(logits)[target], row by row; its gradient is softmax(logits) − onehot(target).

    Autograd on the plain formula would keep the float32 logits and their softmax.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        return torch.cat(
            [
                functional.cross_entropy(
                    scores.float(), wanted, reduction="none", ignore_index=IGNORED
                )
                for scores, wanted in _pieces(logits, targets)
            ]
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        result = torch.empty_like(logits)
        for scores, wanted, outer, found in _pieces(logits, targets, *gradients, result):
            inner = scores.float().softmax(dim=-1)
            inner.scatter_add_(1, wanted.clamp(min=0)[:, None], -torch.ones_like(inner[:, :1]))
            found.copy_(inner.mul_(outer[:, None]).masked_fill_(wanted[:, None] == IGNORED, 0))
        return result, None


def _pieces(*tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    return zip(*(tensor.split(_TOKENS_AT_ONCE) for tensor in tensors), strict=True)
