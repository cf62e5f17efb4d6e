"""A conversation with each character of what is said replaced by a code point that stands for it.

Rendered so, a chat template's text tells of each place whose words stand there: it is the text of
the conversation itself with other characters. That is checked, since a template may do more with
the words than to show them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from jinja2 import Environment

from spp_cli.errors import DataError

__all__ = [
    "REASONING",
    "MarkedChat",
    "Message",
    "NotLocated",
    "Render",
    "Span",
    "has_words",
    "literals_of",
    "mark",
]

Message = dict[str, Any]  # role, content, and whatever else a chat template may read
Span = tuple[int, int]
Render = Callable[[Sequence[Message], bool], str]  # messages, and whether an invitation follows

REASONING = ("reasoning_content", "thinking", "reasoning")  # one of them: the thoughts of a turn
_SAID = ("content", *REASONING, "tool_calls")
_UNSAID = ("type", "id")  # keys of a tool call whose values are no words of the assistant
_MARKED = -1
_FIRST, _BEYOND = 0x30000, 0x110000  # code points of which next to none is in use
_BLANK = re.compile(r"\s")
_ESCAPED = re.compile(r"[\s\"'\\<>&\x00-\x1f]")  # what JSON and HTML write in more characters


class NotLocated(Exception):
    """It cannot be told where what the assistant says stands; the message says why."""


def has_words(message: Message) -> bool:
    """Whether a message has anything in it to learn: words, thoughts or calls of tools."""
    return any(
        value.strip() if isinstance(value, str) else value for value in map(message.get, _SAID)
    )


@dataclass(frozen=True, eq=False)
class MarkedChat:
    """A rendered conversation with marks: ``codes`` (characters,), and ``messages`` before it.

    The n-th character ``said`` has the mark ``base + n``. ``units`` (characters said,) is -1 for
    those with a mark, and for each other the first of those with which it was left as it is.
    ``bounds`` (strings + 1,) tells where among them each string begins and the last one ends, and
    ``speakers`` (strings,) whose it is: the number of a message.
    """

    messages: list[Message]
    codes: np.ndarray
    base: int
    said: np.ndarray
    units: np.ndarray
    bounds: np.ndarray
    speakers: np.ndarray

    @cached_property
    def text(self) -> str:
        """The text with marks, as long as the one without."""
        return _text(self.codes)

    @cached_property
    def places(self) -> np.ndarray:
        """Where the marks stand (marks,), in order.

        What a template says again later, as the name of a tool with its result, does not count.
        """
        hits = self.codes - self.base
        found = np.flatnonzero((hits >= 0) & (hits < len(self.said)))
        return found[np.sort(np.unique(hits[found], return_index=True)[1])]

    @cached_property
    def numbers(self) -> np.ndarray:
        """Which character said each of the marks stands for (marks,)."""
        return self.codes[self.places] - self.base

    @cached_property
    def whose(self) -> np.ndarray:
        """Which message each of the marks is of (marks,)."""
        return self.speakers[self._string(self.numbers)]

    @property
    def spare(self) -> str:
        """A mark that stands for nothing."""
        return chr(self.base + len(self.said))

    def kept_words(self, message: int) -> set[str]:
        """Return the words of a message that have no marks."""
        words = set()
        for string in np.flatnonzero(self.speakers == message):
            begin, end = self.bounds[string : string + 2]
            units = self.units[begin:end]
            for unit in np.unique(units[units != _MARKED]):
                words.add(_text(self.said[begin:end][units == unit]).strip())
        return words - {""}

    def gap_of(self, message: int) -> str:
        """Return the text between the marks of what was said before a message and after it."""
        before, after = self.places[self.whose < message], self.places[self.whose > message]
        begin = int(before[-1]) + 1 if len(before) else 0
        end = int(after[0]) if len(after) else len(self.text)
        return self.text[begin:end] if begin <= end else self.text

    def unmarked_before(self, index: int) -> int:
        """Return how many characters before the mark with this index belong to its string."""
        place, number, count = int(self.places[index]), int(self.numbers[index]), 0
        begin = int(self.bounds[self._string(number)])
        while number - count > begin:
            unit = int(self.units[number - count - 1])
            size = number - count - unit
            if unit == _MARKED or not self._is_at(unit, place - count - size, size):
                break
            count += size
        return count

    def unmarked_after(self, index: int) -> int:
        """Return how many characters after the mark with this index belong to its string."""
        place, number, count = int(self.places[index]) + 1, int(self.numbers[index]) + 1, 0
        stop = int(self.bounds[self._string(number - 1) + 1])
        while number + count < stop:
            rest = self.units[number + count : stop]
            size = int((rest == rest[0]).sum())
            if rest[0] == _MARKED or not self._is_at(number + count, place + count, size):
                break
            count += size
        return count

    def _string(self, numbers: Any) -> Any:
        return np.searchsorted(self.bounds, numbers, side="right") - 1

    def _is_at(self, number: int, place: int, size: int) -> bool:
        """Whether ``size`` characters said, from a ``number`` on, stand at a place unmarked."""
        shown = self.codes[place : place + size] if place >= 0 else ()
        return np.array_equal(shown, self.said[number : number + size])


def mark(
    messages: Sequence[Message], render: Render, kept: Collection[str], *, is_escaped: bool
) -> MarkedChat:
    """Return a conversation with marks, whose text is that without them but for the marks.

    All characters are marked but blanks, the words that are ``kept``, and where the template may
    have ``is_escaped`` them, those that JSON and HTML write otherwise.

    Raises:
        NotLocated: the texts differ in more.
    """
    plain = _codes(render(messages, False))
    strings: list[tuple[int, str]] = []
    for number, message in enumerate(messages):
        strings += ((number, words) for words in _strings(message))
    said = _codes("".join(words for _, words in strings))
    bounds = np.cumsum([0, *(len(words) for _, words in strings)])
    units = np.full(len(said), _MARKED)
    for begin, (_, words) in zip(bounds, strings, strict=False):
        for start, end in _unmarked(words, kept, is_escaped):
            units[begin + start : begin + end] = begin + start
    base = _free(plain, len(said) + 1)
    marks = np.where(units == _MARKED, base + np.arange(len(said)), said)
    spans = pairwise(bounds)

    def replaced(_: str) -> str:
        begin, end = next(spans)
        return _text(marks[begin:end])

    changed = [_with_strings(message, replaced) for message in messages]
    try:
        codes = _codes(render(changed, False))
    except DataError:
        codes = plain[:0]  # the template refuses the words that it was given in place of the others
    hits = codes - base
    is_mark = (hits >= 0) & (hits < len(said))
    meant = codes.copy()
    meant[is_mark] = said[hits[is_mark]]
    if not np.array_equal(meant, plain):
        raise NotLocated("the chat template writes what it is given otherwise than as it stands")
    speakers = np.array([number for number, _ in strings], int)
    return MarkedChat(changed, codes, base, said, units, bounds, speakers)


@lru_cache(maxsize=8)
def literals_of(template: str) -> frozenset[str]:
    """Return the strings that stand in a template's expressions, which may look for them."""
    tokens = Environment().lexer.tokenize(template)
    return frozenset(t.value for t in tokens if t.type == "string" and t.value.strip())


def _unmarked(words: str, kept: Collection[str], is_escaped: bool) -> list[Span]:
    """Return what in a string gets no marks, in order, the parts of it that overlap as one."""
    pattern = _ESCAPED if is_escaped else _BLANK
    found = [match.span() for match in pattern.finditer(words)]
    for word in kept:
        place = words.find(word)
        while place >= 0:
            found.append((place, place + len(word)))
            place = words.find(word, place + 1)
    apart: list[Span] = []
    for start, end in sorted(found):
        if apart and start < apart[-1][1]:
            apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
        else:
            apart.append((start, end))
    return apart


def _strings(message: Message) -> list[str]:
    """Return what is said in a message, string by string."""
    found: list[str] = []

    def see(words: str) -> str:
        found.append(words)
        return words

    _with_strings(message, see)
    return found


def _with_strings(message: Message, change: Callable[[str], str]) -> Message:
    """Return a message with each string that is said in it changed, in a fixed order."""
    keys = _SAID if message["role"] == "assistant" else ("content",)
    return {
        key: _changed(value, change) if key in keys else value for key, value in message.items()
    }


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    if isinstance(value, Mapping):
        return {k: v if k in _UNSAID else _changed(v, change) for k, v in value.items()}
    return value


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)


def _text(codes: np.ndarray) -> str:
    return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _free(taken: np.ndarray, count: int) -> int:
    """Return the first of ``count`` code points in a row that are not ``taken``.

    Raises:
        NotLocated: there are not so many.
    """
    high = np.unique(np.concatenate([taken[taken >= _FIRST], [_FIRST - 1, _BEYOND]]))
    for before, after in pairwise(high):
        if after - before > count:
            return int(before) + 1
    raise NotLocated(f"it is longer than {_BEYOND - _FIRST:,} characters")
