"""Where each turn of the assistant stands in the text that a chat template makes of a conversation.

The words are found by marks (see ``marked_chats``), never by looking for them: a template may write
a turn otherwise than it is given, or otherwise than the same turn at the end of a conversation.
What the template itself writes around the words is told by it, too: how it invites to a turn, and
what it closes one with.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import takewhile

import numpy as np

from spp_cli.data.marked_chats import (
    MarkedChat,
    Message,
    NotLocated,
    Render,
    Span,
    has_words,
    literals_of,
    mark,
)
from spp_cli.data.prompts import shared
from spp_cli.errors import DataError

__all__ = ["turn_spans"]

# How an invitation may end: thoughts are opened, or opened and closed.
_THINKS = re.compile(r"(?:[<\[]\W{0,2}think\w*[>\]|]*\s*)+$", re.IGNORECASE)
_NO_WORD = re.compile(r"\W")
_MARKUP = r"<[^<>\s]{1,40}>|\[/?\w{1,40}\]"


def turn_spans(
    messages: Sequence[Message], render: Render, template: str, special: Collection[str]
) -> dict[int, Span]:
    """Return where in ``render(messages, False)`` each turn of the assistant stands, by its number.

    A turn begins after the invitation to answer and ends with what closes it, as in
    "4<|im_end|>\\n". Those that have no words, or of which the ``template`` shows none, are left
    out. ``special`` are the tokenizer's special tokens.

    Raises:
        NotLocated: the template does more with the words than to show them, or a part of them.
    """
    literals = literals_of(template)
    tags = frozenset(filter(_NO_WORD.search, literals))
    nothing = frozenset[str]()
    reason = ""
    # A template may look for words, and escape characters: those are then left as they are, first
    # only the words that are none, as "</think>" is.
    for kept, is_escaped in ((nothing, False), (tags, False), (tags, True), (literals, True)):
        try:
            chat = mark(messages, render, kept, is_escaped=is_escaped)
            return _Turns(chat, messages, render, special).spans()
        except NotLocated as error:
            reason = str(error)
    raise NotLocated(reason)


class _Turns:
    """The turns of the assistant in a conversation with marks."""

    def __init__(
        self,
        chat: MarkedChat,
        messages: Sequence[Message],
        render: Render,
        special: Collection[str],
    ) -> None:
        self._chat = chat
        self._messages = messages
        self._render = render
        self._special = special
        longest = sorted(special, key=lambda token: (-len(token), token))
        self._tags = re.compile("|".join([*map(re.escape, longest), _MARKUP]))
        self._invitations: dict[str, str] = {}  # by what stands before a turn
        self._openers: set[str] = set()  # tags that invite to a turn
        self._tail: str | None = None  # what follows the words of the last turn

    def spans(self) -> dict[int, Span]:
        """Return the characters (start, end) of each turn that shows words.

        Raises:
            NotLocated: words of a turn are not marked, or are mixed with those of another one.
        """
        said = [
            number
            for number, message in enumerate(self._messages)
            if message["role"] == "assistant" and has_words(message)
        ]
        found = {}
        for number in said:
            marks = np.flatnonzero(self._chat.whose == number)
            if len(marks):
                found[number] = self._span(number, int(marks[0]), int(marks[-1]))
            elif any(map(self._chat.gap_of(number).__contains__, self._chat.kept_words(number))):
                raise NotLocated("the chat template may look for the very words")
        if said and not len(self._chat.places):
            raise NotLocated("the chat template shows none of the words")
        return found

    def _span(self, number: int, first: int, last: int) -> Span:
        """Return where a turn stands whose marks are the ``first`` to the ``last`` of all."""
        chat = self._chat
        if (chat.whose[first : last + 1] != number).any():
            raise NotLocated("the chat template mixes the words of two messages")
        start = self._start(number, first)
        end = int(chat.places[last]) + 1 + chat.unmarked_after(last)
        is_last = last + 1 == len(chat.places)
        after = len(chat.text) if is_last else int(chat.places[last + 1])
        if is_last and number == len(self._messages) - 1:
            return start, after
        within = self._tags.findall(chat.text[start:end])
        return start, end + self._closed(number, chat.text[end:after], within)

    def _start(self, number: int, first: int) -> int:
        """Return where a turn begins: after the invitation to answer, or else with its words.

        What stands between the words before and those of the turn is compared with how the template
        invites to answer what is before. It may open thoughts, which a turn may not have.
        """
        chat = self._chat
        place = int(chat.places[first])
        words = place - chat.unmarked_before(first)
        before = int(chat.places[first - 1]) + 1 if first else 0
        gap = chat.text[before:place]
        if gap not in self._invitations:
            mark = chat.text[before - 1] if first else ""
            self._invitations[gap] = self._after(mark, chat.messages[:number], True)
        invitation = self._invitations[gap]
        head = _THINKS.sub("", invitation)
        self._openers.update(self._tags.findall(head)[-1:])  # those before close what was asked
        for opened in (invitation, head):
            if opened and gap.startswith(opened):
                return before + len(opened)
        return words

    def _closed(self, number: int, gap: str, within: Collection[str]) -> int:
        """Return how much of the ``gap``, the text up to the next message's words, closes a turn.

        It is what would close it at the end, or else the first special token that opens nothing,
        and does not stand ``within`` the turn if another one does not.
        """
        if self._tail is None:
            answer = {"role": "assistant", "content": self._chat.spare}
            asked = self._chat.messages[:number]
            self._tail = self._after(self._chat.spare, [*asked, answer], False)
        tags = list(self._tags.finditer(gap))
        special = [tag for tag in tags if tag[0] in self._special]
        if closing := self._tags.search(self._tail):
            openers = self._openers - {closing[0]}
            for tag in takewhile(lambda tag: tag[0] not in openers, tags):
                if tag[0] == closing[0]:
                    return tag.end() + self._alike(self._tail[closing.end() :], gap[tag.end() :])
            ends = list(takewhile(lambda tag: tag[0] not in self._openers, special))
            if ends:
                return next((tag for tag in ends if tag[0] not in within), ends[0]).end()
        elif self._tail and gap.startswith(self._tail):
            return len(self._tail)
        if gap and self._messages[number].get("tool_calls"):
            if not special:
                raise NotLocated("the chat template does not tell where a call of a tool ends")
            return special[0].start()
        return 0

    def _alike(self, one: str, other: str) -> int:
        """Return how many characters two texts share at their start, none of them part of a tag."""
        pieces = re.compile(f"{self._tags.pattern}|.", re.DOTALL)
        first, second = pieces.findall(one), pieces.findall(other)
        return sum(map(len, first[: shared(first, second)]))

    def _after(self, mark: str, messages: Sequence[Message], prompt: bool) -> str:
        """Return what follows the last ``mark`` in the text of ``messages``, or nothing.

        All of it follows a mark of no characters. Nothing does if the template refuses them.
        """
        try:
            text = self._render(messages, prompt)
        except DataError:
            return ""
        if mark not in text:
            return ""
        return text[text.rindex(mark) + 1 :] if mark else text
