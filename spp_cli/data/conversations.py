"""Conversations in the tokenizer's own chat template, and where in the text each answer stands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from spp_cli.data.answer_spans import turn_spans
from spp_cli.data.files import Row, string_of
from spp_cli.data.marked_chats import Message, NotLocated, Span, has_words
from spp_cli.data.prompts import Example, instruction_of
from spp_cli.errors import DataError

__all__ = [
    "ROLES",
    "TEMPLATE_ERRORS",
    "chat_example",
    "chat_prompt",
    "conversation_example",
    "messages_of",
    "templated",
    "with_system",
]

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
ROLES = {
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
# What a template is asked to mark its answers by, as transformers looks for it.
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class _Chat(NamedTuple):
    """A conversation as a template is given it, and where it stands for a message about it."""

    messages: list[Message]
    tools: list[Any] | None
    place: str
    tokenizer: Any

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """Return messages in the template.

        Raises:
            DataError: the template refuses them.
        """
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tools=self.tools, tokenize=False, add_generation_prompt=prompt
                )
            )
        except TEMPLATE_ERRORS as error:
            raise DataError(f"{self.place}: refused by the chat template: {error}") from error

    @property
    def template(self) -> str:
        """The text of the template that is used."""
        return str(self.tokenizer.get_chat_template(tools=self.tools))


def chat_example(row: Row, tokenizer: Any, *, with_answers: bool = True) -> Example | None:
    """Return the conversation under ``messages`` or ``conversations`` in the tokenizer's template.

    ``system`` and ``tools`` next to it are the template's, too. None if the assistant says nothing,
    so that there is nothing to learn. Where the answers stand is found out only ``with_answers``.

    Raises:
        DataError: there is no conversation, or the tokenizer has no chat template, or one that
            refuses this conversation, or does not show where the answers stand.
    """
    _check_template(tokenizer)
    messages = with_system(messages_of(row, conversation_key(row)), row)
    return templated(messages, tokenizer, row, with_answers=with_answers)


def templated(
    messages: Sequence[Message],
    tokenizer: Any,
    row: Row,
    *,
    asked: int = 0,
    with_answers: bool = True,
) -> Example | None:
    """Return the conversation of a row in the tokenizer's template; ``asked`` messages are prompt.

    The answers are the turns of the assistant after them, but for those of weight 0. None if there
    is none. Where they stand is found out only ``with_answers``.

    Raises:
        DataError: as ``chat_example``.
    """
    _check_template(tokenizer)
    weights = [_weight(message, row, number) for number, message in enumerate(messages, start=1)]
    plain = [{k: v for k, v in message.items() if k != "weight"} for message in messages]
    said = [n for n, each in enumerate(plain) if each["role"] == "assistant" and has_words(each)]
    silent = [number for number in said if not weights[number]]
    learnt = [number for number in said if number >= asked and weights[number]]
    if not learnt:
        return None
    chat, text = _rendered(_Chat(plain, _tools_of(row), row.place, tokenizer))
    if not with_answers and not silent:
        return Example(text, (), is_templated=True)
    spans = _located(chat, learnt)
    answers, passed = (
        tuple(span for number in numbers for span in spans.get(number, ()))
        for numbers in (learnt, silent)
    )
    return Example(text, answers, is_templated=True, silent=passed)


def conversation_example(row: Row, tokenizer: Any) -> Example | None:
    """Return a conversation as ``chat_example`` does, or an instruction as one of a single turn.

    It is for reading, not for learning: where the answers stand is not found out.

    Raises:
        DataError: as ``chat_example``.
    """
    _check_template(tokenizer)
    keys = row.value if isinstance(row.value, Mapping) else {}
    if "instruction" not in keys or {"messages", "conversations"} & keys.keys():
        return chat_example(row, tokenizer, with_answers=False)
    asked = instruction_of(row, "prune.calibration")
    turns = [*asked.history, (asked.whole, asked.output)]
    messages = [
        {"role": role, "content": words}
        for turn in turns
        for role, words in zip(("user", "assistant"), turn, strict=True)
    ]
    return templated(with_system(messages, row), tokenizer, row, with_answers=False)


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
    messages = [{"role": "user", "content": text}]
    return _Chat(messages, None, "the prompt", tokenizer).render(messages, prompt=True)


def _check_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise DataError(
            "format chat needs a chat template, and this model's tokenizer has none. Use a model "
            "whose tokenizer has one, or rows with instruction and output (format: alpaca)"
        )


def _rendered(chat: _Chat) -> tuple[_Chat, str]:
    """Return a conversation as its template takes it, and its text.

    Raises:
        DataError: the template refuses it.
    """
    try:
        return chat, chat.render(chat.messages)
    except DataError:  # some take the arguments of a call as text alone
        as_text = [
            {
                key: _calls(value, json.dumps) if key == "tool_calls" else value
                for key, value in m.items()
            }
            for m in chat.messages
        ]
        if as_text == chat.messages:
            raise
        chat = chat._replace(messages=as_text)
        return chat, chat.render(as_text)


def _located(chat: _Chat, learnt: list[int]) -> dict[int, list[Span]]:
    """Return where in a conversation's text each turn of the assistant stands.

    The template's own marks say it where it has them. If all turns are ``learnt``, it does not
    matter which mark is whose.

    Raises:
        DataError: the template refuses the conversation, or where a turn stands cannot be told.
    """
    turns = [number for number, each in enumerate(chat.messages) if each["role"] == "assistant"]
    special = set(chat.tokenizer.all_special_tokens)
    blocks = _generated(chat) if _GENERATION.search(chat.template) else None
    if blocks and len(blocks) == len(turns):
        return {number: [block] for number, block in zip(turns, blocks, strict=True)}
    try:
        spans = turn_spans(chat.messages, chat.render, chat.template, special)
    except NotLocated as error:
        if blocks and learnt == turns:
            return {turns[0]: blocks}
        raise DataError(
            f"{chat.place}: where the answers stand cannot be told: {error}. Leave this row out, "
            "or train on the whole text (finetune.data.train_on_prompt: true)"
        ) from None
    if blocks is None:
        return {number: [span] for number, span in spans.items()}
    return {
        number: [block for block in blocks if block[0] < end and start < block[1]]
        for number, (start, end) in spans.items()
    }


def _generated(chat: _Chat) -> list[Span]:
    """Return the spans of the text that the template itself marks as the assistant's."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{k: v for k, v in each.items() if v is not None} for each in chat.messages]
    _, spans = render_jinja_template(
        [messages],
        tools=chat.tools,
        chat_template=chat.template,
        return_assistant_tokens_mask=True,
        **chat.tokenizer.special_tokens_map,
    )
    return [(start, end) for start, end in spans[0]]


def conversation_key(row: Row) -> str:
    """Return the key under which a row has its conversation."""
    is_sharegpt = isinstance(row.value, Mapping) and "messages" not in row.value
    return "conversations" if is_sharegpt and "conversations" in row.value else "messages"


def with_system(messages: list[Message], row: Row) -> list[Message]:
    """Return messages with what the row has under ``system`` before them, if they have none."""
    words = row.value.get("system")
    if not isinstance(words, str) or not words.strip() or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": words}, *messages]


def _tools_of(row: Row) -> list[Any] | None:
    """Return the functions that a row has under ``tools``, as a list or as JSON of one.

    Raises:
        DataError: they are something else.
    """
    tools = row.value.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError:
            raise DataError(f"{row.place}: 'tools' is text that is not JSON") from None
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{row.place}: 'tools' must be a list of objects, or JSON of one")
    return tools


def messages_of(row: Row, key: str) -> list[Message]:
    """Return the messages under ``key``, each an object of role and content, or of from and value.

    Whatever else a message has that is not null is kept, for the chat template.

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
    role = string_of(part, names[0], "Both are needed")
    if names[0] == "from":
        if role not in ROLES:
            raise DataError(f"{part.place}: 'from' is '{role}', must be one of {', '.join(ROLES)}")
        role = ROLES[role]
    others = {k: v for k, v in part.value.items() if k not in names and v is not None}
    if calls := others.get("tool_calls"):
        others["tool_calls"] = _calls(calls, _as_object)
    message = {"role": role, **others}
    if part.value.get(names[1]) is None and has_words(message):
        return message  # it calls a tool, or thinks, and says nothing
    return {"role": role, "content": string_of(part, names[1], "Both are needed"), **others}


def _calls(calls: Any, change: Callable[[Any], Any]) -> Any:
    """Return calls of tools with what ``change`` makes of the arguments of each."""
    if isinstance(calls, list):
        return [_calls(call, change) for call in calls]
    if not isinstance(calls, Mapping):
        return calls
    return {
        key: change(value) if key == "arguments" else _calls(value, change)
        for key, value in calls.items()
    }


def _as_object(arguments: Any) -> Any:
    """Return the arguments of a call as an object, as templates want them, if they are its JSON."""
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else None
    except ValueError:
        return arguments
    return read if isinstance(read, dict) else arguments


def _weight(message: Message, row: Row, number: int) -> bool:
    """Return whether a message is to be learnt: its weight is 1, or it has none.

    Raises:
        DataError: the weight is another one than 0 and 1.
    """
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise DataError(
            f"{row.place}, message {number}: weight is {weight!r}, must be 0 (not learnt) or 1"
        )
    return bool(weight)
