"""A row as the model sees it: its text in pieces, and which of them are trained on."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from spp_cli.data.instructions import Encoded
from spp_cli.data.prompts import IGNORED, shared

__all__ = ["preview"]


def preview(row: Encoded, tokenizer: Any) -> dict[str, Any]:
    """Return ``place``, ``tokens`` (all it has), ``length`` (those left), ``trained``, ``pieces``.

    A piece has ``text``, special tokens spelled out, and ``trained``: whether loss is on it.
    """
    # Nothing comes before the first token from which it could be foretold.
    trained = [False, *(label != IGNORED for label in row.labels[1:])]
    return {
        "place": row.place,
        "tokens": row.tokens,
        "length": len(row.ids),
        "trained": sum(trained),
        "pieces": _pieces(row.ids, trained, tokenizer),
    }


def _pieces(ids: list[int], trained: list[bool], tokenizer: Any) -> list[dict[str, Any]]:
    pieces = []
    end, before = 0, ""
    for is_trained, group in groupby(trained):
        end += sum(1 for _ in group)
        # Decoded alone, a piece would lose the blank that some tokenizers put before it.
        text = tokenizer.decode(
            ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if end < len(ids):
            text = text.rstrip("\ufffd")  # half a character, which the next piece makes whole
        pieces.append({"text": text[shared(before, text) :], "trained": is_trained})
        before = text
    return pieces
