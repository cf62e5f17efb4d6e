"""Conversations in the tokenizer's own chat template, and where in the text each answer stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from spp_cli.data.files import Row, string_of
from spp_cli.data.prompts import Example, instruction_of, shared
from spp_cli.errors import DataError

__all__ = [
    "TEMPLATE_ERRORS",
    "Message",
    "chat_example",
    "chat_prompt",
    "conversation_example",
    "messages_of",
    "templated",
]

Message = dict[str, str]  # role and content
# What a template raises that refuses, and one that fails: it is a program, of the model's makers.
TEMPLATE_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)

# Who speaks in rows of ShareGPT's kind, and how chat templates call them.
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}


def chat_example(row: Row, tokenizer: Any) -> Example | None:
    """Return the conversation under ``messages`` or ``conversations`` in the tokenizer's template.

    None if the assistant says nothing in it, so that there is nothing to learn.

    Raises:
        DataError: there is no conversation, or the tokenizer has no chat template, or one that
            refuses this conversation.
    """
    _check_template(tokenizer)
    return templated(_conversation(row), tokenizer, row.place)


def templated(
    messages: Sequence[Message], tokenizer: Any, place: str, *, asked: int = 0
) -> Example | None:
    """Return a conversation in the tokenizer's template; its first ``asked`` messages are prompt.

    None if the assistant says nothing after them.

    Raises:
        DataError: there is no template, or it refuses the conversation, which stands at ``place``.
    """
    _check_template(tokenizer)
    if not _has_answer(messages[asked:]):
        return None

    def render(part: Sequence[Message], prompt: bool = False) -> str:
        return _render(part, tokenizer, place, prompt=prompt)

    text = render(messages)
    return Example(text, _answers(messages, asked, text, render), is_templated=True)


def conversation_example(row: Row, tokenizer: Any) -> Example | None:
    """Return a conversation as ``chat_example`` does, or an instruction as one of a single turn.

    It is for reading, not for learning: where the answers stand is not found out.

    Raises:
        DataError: as ``chat_example``.
    """
    _check_template(tokenizer)
    keys = row.value if isinstance(row.value, Mapping) else {}
    if "instruction" in keys and not {"messages", "conversations"} & keys.keys():
        instruction, context, output = instruction_of(row, "prune.calibration")
        asked = f"{instruction}\n\n{context}" if context.strip() else instruction
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": output}]
    else:
        messages = _conversation(row)
    if not _has_answer(messages):
        return None
    return Example(_render(messages, tokenizer, row.place), (), is_templated=True)


def chat_prompt(text: str, tokenizer: Any) -> str:
    """Return what a user says and the beginning of an answer, in the tokenizer's chat template.

    Raises:
        DataError: there is no template, or it refuses a single message of a user.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "--chat needs a chat template, and this model's tokenizer has none. Leave --chat out, "
            "or name a model whose tokenizer has one"
        )
    return _render([{"role": "user", "content": text}], tokenizer, "the prompt", prompt=True)


def _check_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise DataError(
            "format chat needs a chat template, and this model's tokenizer has none. Use a model "
            "whose tokenizer has one, or rows with instruction and output (format: alpaca)"
        )


def _has_answer(messages: Sequence[Message]) -> bool:
    return any(m["role"] == "assistant" and m["content"].strip() for m in messages)


def _render(
    messages: Sequence[Message], tokenizer: Any, place: str, *, prompt: bool = False
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        )
    except TEMPLATE_ERRORS as error:
        raise DataError(f"{place}: refused by the chat template: {error}") from error


def _conversation(row: Row) -> list[Message]:
    is_sharegpt = isinstance(row.value, Mapping) and "messages" not in row.value
    key = "conversations" if is_sharegpt and "conversations" in row.value else "messages"
    return messages_of(row, key)


def messages_of(row: Row, key: str) -> list[Message]:
    """Return the messages under ``key``, each an object of role and content, or of from and value.

    Raises:
        DataError: there are none, or they are something else.
    """
    messages = row.value.get(key) if isinstance(row.value, Mapping) else None
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{row.place}: '{key}' must be a list of objects with role and content")
    return [
        _message(Row(f"{row.place}, message {number}", message))
        for number, message in enumerate(messages, start=1)
    ]


def _message(part: Row) -> Message:
    names = ("role", "content")
    if isinstance(part.value, Mapping) and "role" not in part.value and "from" in part.value:
        names = ("from", "value")
    role, content = (string_of(part, name, "Both are needed") for name in names)
    if names[0] == "from":
        if role not in _ROLES:
            raise DataError(f"{part.place}: 'from' is '{role}', must be one of {', '.join(_ROLES)}")
        role = _ROLES[role]
    return {"role": role, "content": content}


def _answers(
    messages: Sequence[Message], asked: int, text: str, render: Callable[..., str]
) -> tuple[tuple[int, int], ...]:
    """Return where in ``text`` each turn of the assistant stands, from its first word to its end.

    A turn stands between the text before it with the invitation to answer, and the text up to it.
    Some templates write an earlier turn otherwise than the last (without its thoughts, say), so
    that neither is how the whole begins: then the words are looked for after the invitation.
    """
    spans = []
    after = 0  # the end of the turn before
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        words = message["content"].strip()
        before = render(messages[:index], prompt=True) if index else ""
        up_to = render(messages[: index + 1])
        if index and text.startswith(before):
            start = len(before)
        else:
            invitation = before[len(render(messages[:index])) :] if index else ""
            invited = text.find(invitation, after)
            start = text.find(words, after if invited < 0 else invited + len(invitation))
        if text.startswith(up_to):
            end = len(up_to)
        else:
            tail = up_to[up_to.rfind(words) + len(words) :]
            end = text.find(words, start) + len(words)
            end += shared(tail, text[end:])
        if 0 <= start < end:
            after = end
            if index >= asked:
                spans.append((start, end))
    return tuple(spans)
