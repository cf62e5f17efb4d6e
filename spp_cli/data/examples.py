"""A row of any format as the text a model sees: one function for each format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from spp_cli.data.conversations import (
    chat_example,
    conversation_key,
    messages_of,
    templated,
    with_system,
)
from spp_cli.data.files import Row, string_of
from spp_cli.data.marked_chats import Message
from spp_cli.data.prompts import Example, alpaca_example, completion_example

__all__ = ["RowFormat", "example_of"]

RowFormat = Literal["alpaca", "chat", "completion", "preference"]


def example_of(
    row: Row, form: RowFormat, tokenizer: Any, section: str, *, with_answers: bool = True
) -> Example | None:
    """Return what a model sees of ``row``; None if there is nothing to learn in it.

    ``section`` is where the configuration names the format. Without ``with_answers`` it may not be
    found out where in a chat the answers stand.

    Raises:
        DataError: the row is not in that format, or needs a chat template that is not there, or
            where its answers stand cannot be told.
    """
    if form == "alpaca":
        return alpaca_example(row, section)
    if form == "chat":
        return chat_example(row, tokenizer, with_answers=with_answers)
    key = "completion" if form == "completion" else "chosen"
    if form == "preference" and "prompt" not in _keys(row):
        if "instruction" in _keys(row):
            return alpaca_example(row, section, key=key)
        asked_key = conversation_key(row)
        if asked_key in _keys(row):
            row = Row(row.place, {**row.value, "prompt": row.value[asked_key]})
    return _pair(row, key, tokenizer, section, with_answers)


def _keys(row: Row) -> set[str]:
    return set(row.value) if isinstance(row.value, Mapping) else set()


def _pair(row: Row, key: str, tokenizer: Any, section: str, with_answers: bool) -> Example | None:
    """Return ``prompt`` and what comes after it under ``key``: both texts, or messages."""
    remedy = f"Name these keys so, or set {section}.format"
    value = row.value if isinstance(row.value, dict) else {}
    prompt, answer = value.get("prompt"), value.get(key)
    if isinstance(answer, Mapping):  # a message alone
        row, answer = Row(row.place, {**value, key: [answer]}), [answer]
    if not isinstance(prompt, list) and not isinstance(answer, list):
        return completion_example(string_of(row, "prompt", remedy), string_of(row, key, remedy))
    said: list[Message]
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
    messages = with_system([*asked, *said], row)
    return templated(
        messages, tokenizer, row, asked=len(messages) - len(said), with_answers=with_answers
    )
