"""A row becomes the published prompt, and the loss falls on the answer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import ByteLevel
from transformers import ByT5Tokenizer

from spp_cli.data.files import Row
from spp_cli.data.prompts import (
    IGNORED,
    Example,
    alpaca_example,
    completion_example,
    encode_example,
)
from spp_cli.errors import DataError

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
spoken = words.filter(str.strip)


def answers(example: Example) -> list[str]:
    return [example.text[start:end] for start, end in example.answers]


def trained(ids: list[int], labels: list[int]) -> list[int]:
    assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
    return [label for label in labels if label != IGNORED]


def test_the_alpaca_prompt_has_a_form_with_input_and_one_without() -> None:
    with_input = alpaca_example(Row("r", {"instruction": "Add", "input": "1 1", "output": "2"}))
    assert with_input
    assert with_input.text == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd\n\n### Input:\n1 1\n\n### Response:\n2"
    )
    for without in ({}, {"input": ""}, {"input": None}):
        example = alpaca_example(Row("r", {"instruction": "{Add}", "output": "2", **without}))
        assert example
        assert example.text == (
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\n{Add}\n\n### Response:\n2"
        )
        assert answers(example) == ["2"]


def test_a_blank_answer_gives_no_example() -> None:
    assert alpaca_example(Row("r", {"instruction": "Add", "output": " "})) is None


@given(instruction=words, context=words, output=spoken)
def test_on_the_prompt_or_not_the_ids_are_the_same_and_labels_are_ids(
    tokenizer: Any, instruction: str, context: str, output: str
) -> None:
    row = Row("r", {"instruction": instruction, "input": context, "output": output})
    example = alpaca_example(row)
    assert example
    ids, labels = encode_example(example, tokenizer, train_on_prompt=True)
    assert ids == labels
    assert ids == [*tokenizer(example.text)["input_ids"], tokenizer.eos_token_id]
    same_ids, labels = encode_example(example, tokenizer, train_on_prompt=False)
    assert same_ids == ids
    answer = trained(ids, labels)
    assert labels[-len(answer) :] == answer  # one run of tokens at the end
    assert answer[-1] == tokenizer.eos_token_id
    prompt = len(ids) - len(answer)
    start = example.answers[0][0]
    assert example.text[:start].startswith(tokenizer.decode(ids[1:prompt]).rstrip("�"))
    assert tokenizer.decode(answer[:-1]).endswith(output)


def test_a_token_across_the_boundary_carries_the_loss(bare_tokenizer: Any) -> None:
    text = "    return value"
    pieces = [bare_tokenizer.decode([token]) for token in bare_tokenizer(text)["input_ids"]]
    middle = len(pieces[0]) - 1  # inside the first token
    example = Example(text, ((middle, len(text)),))
    ids, labels = encode_example(example, bare_tokenizer, train_on_prompt=False)
    assert labels == ids


def test_an_alpaca_row_without_output_is_told_with_its_keys() -> None:
    with pytest.raises(DataError, match="rows:1: no key 'output'; its keys: instruction, answer"):
        alpaca_example(Row("rows:1", {"instruction": "Add", "answer": "2"}))


@pytest.mark.parametrize("trims", [False, True])
@given(text=words, begin=st.integers(0, 30), length=st.integers(1, 30), bos=st.booleans())
def test_the_tokens_that_have_a_part_in_a_span_carry_loss_and_no_others(
    tokenizer: Any, trims: bool, text: str, begin: int, length: int, bos: bool
) -> None:
    if trims:  # as GPT-2's do: the blank before a word is not among the characters of its token
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    text = tokenizer.bos_token * bos + text
    start, end = min(begin, len(text)), min(begin + length, len(text))
    example = Example(text, ((start, end),) if start < end else (), is_templated=True)
    ids, labels = encode_example(example, tokenizer, train_on_prompt=False)
    first, last = (len(text[:place].encode()) for place in (start, end))
    place, carry = 0, []
    for token in tokenizer.convert_ids_to_tokens(ids):  # of which each character is a byte
        carry.append(place < last and first < place + len(token))
        place += len(token)
    assert labels == [token if has else IGNORED for token, has in zip(ids, carry, strict=True)]
    silent = Example(text, (), is_templated=True, silent=example.answers)
    _, others = encode_example(silent, tokenizer, train_on_prompt=True)
    assert [label == IGNORED for label in others] == carry


@given(text=words, begin=st.integers(0, 30), length=st.integers(1, 30))
def test_a_tokenizer_that_tells_no_places_trains_on_the_same(
    text: str, begin: int, length: int
) -> None:
    in_bytes = ByT5Tokenizer()  # written in Python: a token for each byte
    start, end = min(begin, len(text)), min(begin + length, len(text))
    example = Example(text, ((start, end),) if start < end else (), is_templated=True)
    ids, labels = encode_example(example, in_bytes, train_on_prompt=False)
    assert in_bytes.decode(trained(ids, labels)) == text[start:end]


def test_a_prompt_that_begins_as_the_tokenizer_does_begins_once(tokenizer: Any) -> None:
    example = completion_example("<s>1 + 1 =", " 2")
    assert example
    ids, labels = encode_example(example, tokenizer, train_on_prompt=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(trained(ids, labels)) == " 2</s>"
