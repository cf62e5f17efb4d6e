"""An instruction and its answer as the text a model sees, and which tokens carry the loss."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from spp_cli.data.files import Row, string_of
from spp_cli.data.tokens import close, encode_all, encode_with_offsets
from spp_cli.errors import DataError
from spp_cli.models.cross_entropy import IGNORED

__all__ = [
    "IGNORED",
    "Example",
    "Instruction",
    "alpaca_example",
    "completion_example",
    "encode_example",
    "encode_examples",
    "instruction_of",
    "shared",
]

# The prompts of Stanford Alpaca, as the released SPP code trains on them.
_TASK = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
)
_TASK_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
)
_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
_NO_INPUT = "### Instruction:\n{instruction}\n\n### Response:\n"


@dataclass(frozen=True)
class Example:
    """A text, and the spans of characters (start, end) in it that the model is to say.

    ``is_templated`` says that a chat template wrote the special tokens into the text already.
    ``silent`` are spans that carry no loss even where all the rest of the text does.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    is_templated: bool = False
    silent: tuple[tuple[int, int], ...] = ()


class Instruction(NamedTuple):
    """What a row of Alpaca's kind asks; ``history`` are earlier questions and their answers.

    ``context`` and ``system`` are empty where a row has none.
    """

    instruction: str
    context: str
    output: str
    system: str
    history: tuple[tuple[str, str], ...]

    @property
    def whole(self) -> str:
        """The instruction and what it is about, as a user would say it."""
        return "\n\n".join(filter(str.strip, (self.instruction, self.context)))


def alpaca_example(
    row: Row, section: str = "finetune.data", *, key: str = "output"
) -> Example | None:
    """Return prompt and output of a row with instruction, output and perhaps input.

    ``system`` stands in place of the prompt's first words, and the turns of ``history`` before the
    instruction. None if the output is blank, so that there is nothing to learn. ``section`` is
    where the configuration names the format, ``key`` the name of the output.

    Raises:
        DataError: a key is missing or is not text.
    """
    asked = instruction_of(row, section, key=key)
    has_input = bool(asked.context.strip())
    task = _TASK_WITH_INPUT if has_input else _TASK
    if asked.system.strip():
        task = f"{asked.system}\n\n"
    earlier = (f"{_NO_INPUT.format(instruction=q)}{a}\n\n" for q, a in asked.history)
    form = _INPUT if has_input else _NO_INPUT
    last = form.format(instruction=asked.instruction, input=asked.context)
    return completion_example("".join((task, *earlier, last)), asked.output)


def completion_example(prompt: str, completion: str) -> Example | None:
    """Return the two texts as one; None if there is nothing to learn, as the second is blank."""
    text = prompt + completion
    return Example(text, ((len(prompt), len(text)),)) if completion.strip() else None


def instruction_of(row: Row, section: str, *, key: str = "output") -> Instruction:
    """Return what a row asks, and the answer that it has under ``key``.

    Raises:
        DataError: a key is missing or is not text.
    """
    remedy = f"Name these keys so, or set {section}.format"
    instruction = string_of(row, "instruction", remedy)
    output = string_of(row, key, remedy)
    context, system = (
        string_of(row, name, remedy) if row.value.get(name) is not None else ""
        for name in ("input", "system")
    )
    return Instruction(instruction, context, output, system, _history_of(row))


def _history_of(row: Row) -> tuple[tuple[str, str], ...]:
    turns = row.value.get("history")
    if turns is None:
        return ()
    is_list = isinstance(turns, list) and all(
        isinstance(turn, (list, tuple)) and len(turn) == 2 and all(isinstance(t, str) for t in turn)
        for turn in turns
    )
    if not is_list:
        raise DataError(
            f"{row.place}: 'history' must be a list of pairs of texts, a question and its answer"
        )
    return tuple((question, answer) for question, answer in turns)


def encode_example(
    example: Example, tokenizer: Any, *, train_on_prompt: bool
) -> tuple[list[int], list[int]]:
    """Return the token ids and the labels of ``example``: the ids again, or -100 for no loss.

    The text is tokenized as one. A token that reaches from a prompt into an answer, or out of it,
    carries loss.
    """
    return encode_examples([example], tokenizer, train_on_prompt=train_on_prompt)[0]


def encode_examples(
    examples: Sequence[Example], tokenizer: Any, *, train_on_prompt: bool
) -> list[tuple[list[int], list[int]]]:
    """Return what ``encode_example`` does of each, using all cores where the tokenizer can."""
    found: list[tuple[list[int], list[int]]] = [([], [])] * len(examples)
    for special in (True, False):
        numbers = [n for n, each in enumerate(examples) if each.is_templated is not special]
        if not numbers:
            continue
        texts = [examples[number].text for number in numbers]
        encoded = encode_with_offsets(tokenizer, texts, special=special)
        for number, (ids, offsets) in zip(numbers, encoded, strict=True):
            example = examples[number]
            whole = close(tokenizer, ids) if special else ids
            if train_on_prompt:
                labels = list(whole)
                for first, last in _tokens_of(example, example.silent, ids, offsets, tokenizer):
                    labels[first:last] = [IGNORED] * (last - first)
            else:
                labels = [IGNORED] * len(whole)
                for first, last in _tokens_of(example, example.answers, ids, offsets, tokenizer):
                    # After the last words the end of the sequence is the model's to say, too.
                    last = len(whole) if last == len(ids) else last
                    labels[first:last] = whole[first:last]
            found[number] = (whole, labels)
    return found


def _tokens_of(
    example: Example,
    spans: Sequence[tuple[int, int]],
    ids: list[int],
    offsets: Sequence[tuple[int, int]] | None,
    tokenizer: Any,
) -> list[tuple[int, int]]:
    """Return of each span of characters the tokens (first, last) that have a part in it.

    Without ``offsets`` the text up to where a span begins, and ends, is tokenized to tell.
    """
    if not spans:
        return []
    if offsets is None:
        special = not example.is_templated
        texts = [example.text[:place] for place in chain(*spans)]
        places = [shared(part, ids) for part in encode_all(tokenizer, texts, special=special)]
        found = list(zip(places[::2], places[1::2], strict=True))
    else:
        begins, ends = _extents(offsets)
        found = [(bisect_right(ends, start), bisect_left(begins, end)) for start, end in spans]
    at_end = len(example.text)
    return [
        (first, len(ids) if end == at_end else last)
        for (first, last), (_, end) in zip(found, spans, strict=True)
    ]


def _extents(offsets: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Return where each token begins and ends, in order, the tokens without a gap between them.

    Some tokenizers leave the blank before a word out of its token; and a token that is only a part
    of a character has all of it, as its neighbours do.
    """
    begins: list[int] = []
    ends: list[int] = []
    reached = 0
    for start, end in offsets:
        begins.append(max(begins[-1], min(start, reached)) if begins else 0)
        reached = max(reached, end)
        ends.append(reached)
    return begins, ends


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many items two sequences have in common at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
