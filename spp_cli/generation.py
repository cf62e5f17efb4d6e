"""What a model writes after some tokens, by transformers' own generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from spp_cli.data.tokens import check_vocabulary
from spp_cli.models.loading import quiet

__all__ = ["Continuation", "Decoding", "continuation"]


@dataclass(frozen=True)
class Decoding:
    """How many tokens are written at most, and how each is chosen."""

    max_new_tokens: int
    temperature: float = 0.0  # 0: the most likely one every time
    seed: int = 0  # of the draws, where there are any


@dataclass(frozen=True)
class Continuation:
    """A text and how many tokens it is, special ones counted but not shown."""

    text: str
    tokens: int


def continuation(
    model: PreTrainedModel, tokenizer: Any, tokens: Sequence[int], decoding: Decoding
) -> Continuation:
    """Return what ``model`` writes after ``tokens``, until it ends by itself or is cut.

    Raises:
        ModelError: a token lies outside the model's vocabulary.
    """
    check_vocabulary(max(tokens, default=0), model.config)
    given = torch.tensor([tokens], device=model.device)
    end = tokenizer.eos_token_id
    chosen: dict[str, Any] = {"do_sample": False}
    if decoding.temperature:
        torch.manual_seed(decoding.seed)
        chosen = {"do_sample": True, "temperature": decoding.temperature}
    with torch.no_grad(), quiet():
        written = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=decoding.max_new_tokens,
            pad_token_id=end if end is not None else 0,
            **chosen,
        )
    new = written[0, len(tokens) :]
    return Continuation(str(tokenizer.decode(new, skip_special_tokens=True)), len(new))
