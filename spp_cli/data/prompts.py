"""An instruction and its answer as the text a model sees, and which tokens carry the loss."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from spp_cli.data.files import Row, string_of
from spp_cli.data.tokens import close, encode_all, encode_with_offsets
from spp_cli.models.cross_entropy import IGNORED

__all__ = [
    "IGNORED",
    "Example",
    "alpaca_example",
    "completion_example",
    "encode_example",
    "encode_examples",
    "instruction_of",
    "shared",
]

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
    ``silent`` are spans that carry no loss even where all the rest of the text does.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    is_templated: bool = False
    silent: tuple[tuple[int, int], ...] = ()


def alpaca_example(row: Row, section: str = "finetune.data") -> Example | None:
    """Return prompt and output of a row with instruction, output and perhaps input.

    None if the output is blank, so that there is nothing to learn. ``section`` is where the
    configuration names the format.

    Raises:
        DataError: a key is missing or is not text.
    """
    instruction, context, output = instruction_of(row, section)
    form = ALPACA_WITH_INPUT if context.strip() else ALPACA
    prompt = form.format(instruction=instruction, input=context)
    return completion_example(prompt, output)


def completion_example(prompt: str, completion: str) -> Example | None:
    """Return the two texts as one; None if there is nothing to learn, as the second is blank."""
    text = prompt + completion
    return Example(text, ((len(prompt), len(text)),)) if completion.strip() else None


def instruction_of(row: Row, section: str) -> tuple[str, str, str]:
    """Return instruction, input and output; an input that is not there is empty.

    Raises:
        DataError: a key is missing or is not text.
    """
    remedy = f"Name these keys so, or set {section}.format"
    instruction = string_of(row, "instruction", remedy)
    output = string_of(row, "output", remedy)
    context = string_of(row, "input", remedy) if row.value.get("input") is not None else ""
    return instruction, context, output


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
    begins, ends, reached = [], [], 0
    for start, end in offsets:
        begins.append(max(begins[-1], min(start, reached)) if begins else 0)
        reached = max(reached, end)
        ends.append(reached)
    return begins, ends


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many items two sequences have in common at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
