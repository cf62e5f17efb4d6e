"""A row of any format as the text a model sees: one function for each format."""

from __future__ import annotations

from typing import Any, Literal

from spp_cli.data.conversations import chat_example, messages_of, templated
from spp_cli.data.files import Row, string_of
from spp_cli.data.prompts import Example, alpaca_example, completion_example

__all__ = ["RowFormat", "example_of"]

RowFormat = Literal["alpaca", "chat", "completion", "preference"]


def example_of(row: Row, form: RowFormat, tokenizer: Any, section: str) -> Example | None:
    """Return what a model sees of ``row``; None if there is nothing to learn in it.

    ``section`` is where the configuration names the format.

    Raises:
        DataError: the row is not in that format, or needs a chat template that is not there.
    """
    if form == "alpaca":
        return alpaca_example(row, section)
    if form == "chat":
        return chat_example(row, tokenizer)
    return _pair(row, "completion" if form == "completion" else "chosen", tokenizer, section)


def _pair(row: Row, key: str, tokenizer: Any, section: str) -> Example | None:
    """Return ``prompt`` and what comes after it under ``key``: both texts, or messages."""
    remedy = f"Name these keys so, or set {section}.format"
    value = row.value if isinstance(row.value, dict) else {}
    prompt, answer = value.get("prompt"), value.get(key)
    if not isinstance(prompt, list) and not isinstance(answer, list):
        return completion_example(string_of(row, "prompt", remedy), string_of(row, key, remedy))
    if isinstance(answer, list):
        said = messages_of(row, key)
    else:
        said = [{"role": "assistant", "content": string_of(row, key, remedy)}]
    if isinstance(prompt, list):
        asked = messages_of(row, "prompt")
    elif prompt is not None and said[0]["role"] == "assistant":
        asked = [{"role": "user", "content": string_of(row, "prompt", remedy)}]
    else:
        asked = []  # the whole conversation stands under the key
    if said[: len(asked)] == asked:
        said = said[len(asked) :]
    return templated([*asked, *said], tokenizer, row.place, asked=len(asked))
