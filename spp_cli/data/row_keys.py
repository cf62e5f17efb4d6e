"""What a row's keys say next to its text: not to learn it, or what nothing reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from spp_cli.data.conversations import ROLES, conversation_key
from spp_cli.data.files import Row
from spp_cli.data.marked_chats import REASONING

__all__ = ["unlearnt", "unread_keys"]

_LABELS = ("label", "kto_tag")  # of KTO's rows: whether what they say is good
_READ = {
    "alpaca": {"instruction", "input", "output", "system", "history"},
    "chat": set(),
    "completion": {"prompt", "completion"},
    "preference": {"prompt", "chosen", "rejected", "instruction", "input", "history"},
}


def unlearnt(row: Row, form: str) -> str:
    """Return why a row says itself that it is not to be learnt, or nothing if it does not."""
    value = row.value if isinstance(row.value, Mapping) else {}
    if any(_verdict(value.get(key), form) is False for key in _LABELS):
        return "labelled false"
    if _weight(value.get("weight")) == 0 or any(map(_is_all_silent, value.values())):
        return "of weight 0"
    return ""


def unread_keys(row: Row, form: str, tokenizer: Any) -> list[str]:
    """Return the keys that a row has and of which nothing is made, in order.

    A key of messages that the chat template does not read has "messages." before it.
    """
    value = {key: each for key, each in row.value.items() if each not in (None, "", [], {})}
    read = set(_READ[form])
    has_messages = any(isinstance(value.get(key), (list, Mapping)) for key in read - {"history"})
    if form == "chat" or (form == "preference" and "prompt" not in value):
        read.add(conversation_key(row))
        has_messages = has_messages or conversation_key(row) in value
    read |= {key for key in _LABELS if _verdict(value.get(key), form) is not None}
    if _weight(value.get("weight")) in (0, 1):
        read.add("weight")
    if has_messages or "instruction" in value:
        read.add("system")
    if not has_messages:
        return sorted(value.keys() - read)
    template = str(tokenizer.get_chat_template(tools=value.get("tools")))
    if _mentions(template, "tools"):
        read.add("tools")
    messages = [each for key in read & value.keys() for each in _messages(value[key])]
    if any(_role(each) == "system" for each in messages):
        read.discard("system")  # the conversation has one of its own
    inner = {key for each in messages for key, part in each.items() if part is not None}
    inner -= {"role", "content", "from", "value", "weight"}
    unseen = {f"messages.{key}" for key in inner if not _mentions(template, key)}
    return sorted(value.keys() - read) + sorted(unseen)


def _verdict(value: Any, form: str) -> bool | None:
    """Return what a label says, None if it is a label of another kind."""
    words = str(value).strip().lower()
    if form == "preference" or words not in ("true", "false", "1", "0"):
        return None
    is_number = words in ("1", "0")  # a class, unless one text is what is judged
    return None if is_number and form != "completion" else words in ("true", "1")


def _weight(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _is_all_silent(value: Any) -> bool:
    """Whether the assistant says something in a conversation, all of it with a weight of 0."""
    said = [each for each in _messages(value) if _role(each) == "assistant"]
    return bool(said) and all(each.get("weight") == 0 for each in said)


def _messages(value: Any) -> Iterator[Mapping[str, Any]]:
    parts = value if isinstance(value, list) else [value]
    return (part for part in parts if isinstance(part, Mapping))


def _role(message: Mapping[str, Any]) -> Any:
    return message.get("role") or ROLES.get(str(message.get("from")))


@lru_cache(maxsize=1024)
def _mentions(template: str, key: str) -> bool:
    """Whether a chat template reads a key of messages; thoughts go by several names."""
    names = REASONING if key in REASONING else (key,)
    return any(re.search(rf"\b{re.escape(name)}\b", template) for name in names)
