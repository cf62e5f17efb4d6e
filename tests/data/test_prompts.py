"""A row becomes the published prompt or the tokenizer's chat; the loss falls on the answers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.data.files import Row
from spp_cli.data.prompts import (
    IGNORED,
    Example,
    alpaca_example,
    chat_example,
    encode_example,
)
from spp_cli.errors import DataError

# As some real templates do: thoughts are shown in the last turn only, the system's words come last.
CHANGING = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if loop.last %}<think></think>{% endif %}{{ message.content }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
spoken = words.filter(str.strip)


def chat(*contents: str, first: str = "user") -> Row:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    return Row("rows:1", {"messages": messages})


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


def test_a_blank_answer_gives_no_example(chat_tokenizer: Any) -> None:
    assert alpaca_example(Row("r", {"instruction": "Add", "output": " "})) is None
    assert chat_example(chat("Hello"), chat_tokenizer) is None
    assert chat_example(chat("Hello", " "), chat_tokenizer) is None


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


@given(contents=st.lists(spoken, min_size=2, max_size=6))
def test_each_turn_of_the_assistant_carries_the_loss_and_its_end_too(
    chat_tokenizer: Any, contents: list[str]
) -> None:
    example = chat_example(chat(*contents), chat_tokenizer)
    assert example
    assert answers(example) == [f"{text}<|im_end|>\n" for text in contents[1::2]]
    ids, labels = encode_example(example, chat_tokenizer, train_on_prompt=False)
    assert ids == chat_tokenizer(example.text, add_special_tokens=False)["input_ids"]
    end = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert trained(ids, labels).count(end) == len(contents) // 2
    begin = chat_tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert begin not in trained(ids, labels)


def test_a_conversation_may_begin_with_the_assistant(chat_tokenizer: Any) -> None:
    example = chat_example(chat("Hello", "Hi", "Well?", first="assistant"), chat_tokenizer)
    assert example
    assert answers(example) == ["Hello<|im_end|>\n", "Well?<|im_end|>\n"]


def test_a_template_that_writes_earlier_turns_otherwise_still_trains_on_them(
    chat_tokenizer: Any,
) -> None:
    changing = copy.deepcopy(chat_tokenizer)
    changing.chat_template = CHANGING
    example = chat_example(chat("1 + 1?", "2", "And 2 + 2?", "4"), changing)
    assert example
    assert answers(example) == ["2<|im_end|>\n", "<think></think>4<|im_end|>\n"]


def test_what_a_template_refuses_is_told_with_the_row(chat_tokenizer: Any) -> None:
    strict = copy.deepcopy(chat_tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="rows:1: refused by the chat template: roles must alt"):
        chat_example(chat("Hello", "Hi"), strict)


def test_a_tokenizer_without_a_chat_template_is_refused_with_the_way_out(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"has none\. Use a model whose .* \(format: alpaca\)"):
        chat_example(chat("Hello", "Hi"), tokenizer)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"messages": []}, "rows:1: 'messages' must be a list"),
        ({"messages": "Hello"}, "rows:1: 'messages' must be a list"),
        (["Hello"], "rows:1: 'messages' must be a list"),
        ({"messages": ["Hello"]}, "rows:1, message 1: a str, must be an object"),
        ({"messages": [{"role": "user"}]}, "rows:1, message 1: no key 'content'; its keys: role"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "'content' is a list, must be text"),
    ],
)
def test_a_row_that_is_no_conversation_is_told(
    chat_tokenizer: Any, value: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        chat_example(Row("rows:1", value), chat_tokenizer)


def test_an_alpaca_row_without_output_is_told_with_its_keys() -> None:
    with pytest.raises(DataError, match="rows:1: no key 'output'; its keys: instruction, answer"):
        alpaca_example(Row("rows:1", {"instruction": "Add", "answer": "2"}))
