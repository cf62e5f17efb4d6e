"""One row of instruction data as the text a model sees, and which tokens of it carry the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from spp_cli.data.files import Row, string_of
from spp_cli.data.tokens import close, encode
from spp_cli.errors import DataError

__all__ = [
    "IGNORED",
    "Example",
    "alpaca_example",
    "chat_example",
    "conversation_example",
    "encode_example",
]

IGNORED = -100  # the label that torch's cross-entropy passes over

# The prompts of Stanford Alpaca, as the released SPP code trains on them.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Example:
    """A text, and the spans of characters (start, end) in it that the model is to say.

    ``is_templated`` says that a chat template wrote the special tokens into the text already.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    is_templated: bool = False


def alpaca_example(row: Row, section: str = "finetune.data") -> Example | None:
    """Return prompt and output of a row with instruction, output and perhaps input.

    None if the output is blank, so that there is nothing to learn. ``section`` is where the
    configuration names the format.

    Raises:
        DataError: a key is missing or is not text.
    """
    instruction, context, output = _instruction(row, section)
    form = ALPACA_WITH_INPUT if context.strip() else ALPACA
    prompt = form.format(instruction=instruction, input=context)
    text = prompt + output
    return Example(text, ((len(prompt), len(text)),)) if output.strip() else None


def _instruction(row: Row, section: str) -> tuple[str, str, str]:
    """Return instruction, input and output; an input that is not there is empty."""
    remedy = f"Name these keys so, or set {section}.format"
    instruction = string_of(row, "instruction", remedy)
    output = string_of(row, "output", remedy)
    context = string_of(row, "input", remedy) if row.value.get("input") is not None else ""
    return instruction, context, output


def chat_example(row: Row, tokenizer: Any) -> Example | None:
    """Return the conversation under ``messages`` in the tokenizer's template.

    None if the assistant says nothing in it, so that there is nothing to learn.

    Raises:
        DataError: ``messages`` is not a conversation, or the tokenizer has no chat template, or one
            that refuses this conversation.
    """
    _check_template(tokenizer)
    messages = _messages(row)
    if not _has_answer(messages):
        return None

    def render(part: Sequence[Mapping[str, str]], prompt: bool = False) -> str:
        return _render(part, tokenizer, row.place, prompt=prompt)

    return Example(text := render(messages), _answers(messages, text, render), is_templated=True)


def conversation_example(row: Row, tokenizer: Any) -> Example | None:
    """Return a conversation as ``chat_example`` does, or an instruction as one of a single turn.

    It is for reading, not for learning: where the answers stand is not found out.

    Raises:
        DataError: as ``chat_example``.
    """
    _check_template(tokenizer)
    is_instruction = isinstance(row.value, Mapping) and "messages" not in row.value
    if is_instruction and "instruction" in row.value:
        instruction, context, output = _instruction(row, "prune.calibration")
        asked = f"{instruction}\n\n{context}" if context.strip() else instruction
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": output}]
    else:
        messages = _messages(row)
    if not _has_answer(messages):
        return None
    return Example(_render(messages, tokenizer, row.place), (), is_templated=True)


def _check_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise DataError(
            "format chat needs a chat template, and this model's tokenizer has none. Use a model "
            "whose tokenizer has one, or rows with instruction and output (format: alpaca)"
        )


def _has_answer(messages: Sequence[Mapping[str, str]]) -> bool:
    return any(m["role"] == "assistant" and m["content"].strip() for m in messages)


def _render(
    messages: Sequence[Mapping[str, str]], tokenizer: Any, place: str, *, prompt: bool = False
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        )
    except TemplateError as error:
        raise DataError(f"{place}: refused by the chat template: {error}") from error


def _messages(row: Row) -> list[dict[str, str]]:
    messages = row.value.get("messages") if isinstance(row.value, Mapping) else None
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{row.place}: 'messages' must be a list of objects with role and content")
    read = []
    for number, message in enumerate(messages, start=1):
        part = Row(f"{row.place}, message {number}", message)
        read.append({key: string_of(part, key, "Both are needed") for key in ("role", "content")})
    return read


def _answers(
    messages: Sequence[Mapping[str, str]], text: str, render: Callable[..., str]
) -> tuple[tuple[int, int], ...]:
    """Return where in ``text`` each turn of the assistant stands, from its first word to its end.

    A turn stands between the text before it with the invitation to answer, and the text up to it.
    Some templates write an earlier turn otherwise than the last (without its thoughts, say), so
    that neither is how the whole begins: then the words themselves are looked for.
    """
    spans = []
    after = 0  # the end of the turn before
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        words = message["content"].strip()
        before = render(messages[:index], prompt=True) if index else text[:0]
        up_to = render(messages[: index + 1])
        start = len(before) if index and text.startswith(before) else text.find(words, after)
        if text.startswith(up_to):
            end = len(up_to)
        else:
            tail = up_to[up_to.rfind(words) + len(words) :]
            end = text.find(words, start) + len(words)
            end += _common(tail, text[end:])
        if 0 <= start < end:
            spans.append((start, end))
            after = end
    return tuple(spans)


def encode_example(
    example: Example, tokenizer: Any, *, train_on_prompt: bool
) -> tuple[list[int], list[int]]:
    """Return the token ids and the labels of ``example``: the ids again, or -100 for no loss.

    The text is tokenized as one. A token that reaches from a prompt into an answer carries loss.
    """
    special = not example.is_templated
    ids = encode(tokenizer, example.text, special=special)
    whole = close(tokenizer, ids) if special else ids
    if train_on_prompt:
        return whole, list(whole)
    labels = [IGNORED] * len(whole)
    for start, end in example.answers:
        first, last = (
            _common(encode(tokenizer, example.text[:position], special=special), ids)
            for position in (start, end)
        )
        if end == len(example.text):
            last = len(whole)  # the end of the sequence is the model's to say, too
        labels[first:last] = whole[first:last]
    return whole, labels


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many items two sequences have in common at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
