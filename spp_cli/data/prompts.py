"""An instruction and its answer as the text a model sees, and which tokens carry the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from spp_cli.data.files import Row, string_of
from spp_cli.data.tokens import close

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

    The text is tokenized as one. A token that reaches from a prompt into an answer carries loss.
    """
    return encode_examples([example], tokenizer, train_on_prompt=train_on_prompt)[0]


def encode_examples(
    examples: Sequence[Example], tokenizer: Any, *, train_on_prompt: bool
) -> list[tuple[list[int], list[int]]]:
    """Return what ``encode_example`` does of each, using all cores where the tokenizer can."""
    # Where a span begins or ends among the tokens is found by tokenizing the text up to there.
    places = [() if train_on_prompt else tuple(chain(*example.answers)) for example in examples]
    texts = [
        (example.text[:place], not example.is_templated)
        for example, its_places in zip(examples, places, strict=True)
        for place in (None, *its_places)
    ]
    encoded = iter(_encode_all(texts, tokenizer))
    found = []
    for example, its_places in zip(examples, places, strict=True):
        ids, *parts = (next(encoded) for _ in range(1 + len(its_places)))
        whole = ids if example.is_templated else close(tokenizer, ids)
        labels = list(whole) if train_on_prompt else _labels(example, ids, parts, whole)
        found.append((whole, labels))
    return found


def _encode_all(texts: Sequence[tuple[str, bool]], tokenizer: Any) -> list[list[int]]:
    """Return the tokens of each text, with special tokens around it or not."""
    found: list[list[int]] = [[]] * len(texts)
    for special in (True, False):
        numbers = [number for number, (_, wanted) in enumerate(texts) if wanted is special]
        if numbers:
            batch = [texts[number][0] for number in numbers]
            ids = tokenizer(batch, add_special_tokens=special, verbose=False)["input_ids"]
            for number, its_ids in zip(numbers, ids, strict=True):
                found[number] = list(its_ids)
    return found


def _labels(
    example: Example, ids: list[int], parts: Sequence[list[int]], whole: list[int]
) -> list[int]:
    """Return the labels of the answers; ``parts`` are the tokens up to where each begins, ends."""
    labels = [IGNORED] * len(whole)
    for (_, end), before, up_to in zip(example.answers, parts[::2], parts[1::2], strict=True):
        first, last = shared(before, ids), shared(up_to, ids)
        if end == len(example.text):
            last = len(whole)  # the end of the sequence is the model's to say, too
        labels[first:last] = whole[first:last]
    return labels


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many items two sequences have in common at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
