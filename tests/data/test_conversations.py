"""A conversation becomes the tokenizer's chat; the loss falls on what the assistant says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.data.conversations import chat_example
from spp_cli.data.examples import RowFormat, example_of
from spp_cli.data.files import Row
from spp_cli.data.formats import format_of
from spp_cli.data.prompts import IGNORED, Example, encode_example
from spp_cli.errors import DataError

# As some real templates do: thoughts are shown in the last turn only, the system's words come last.
CHANGING = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if loop.last %}<think></think>{% endif %}{{ message.content }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# It begins with how many turns there are: no text up to a turn is how the whole begins.
COUNTING = "{{ messages | length }} turns\n" + CHANGING
spoken = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(str.strip)


def chat(*contents: str, first: str = "user") -> Row:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    return Row("rows:1", {"messages": messages})


def answers(example: Example | None) -> list[str]:
    assert example
    return [example.text[start:end] for start, end in example.answers]


def trained(ids: list[int], labels: list[int]) -> list[int]:
    assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
    return [label for label in labels if label != IGNORED]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_silence_gives_no_example(chat_tokenizer: Any) -> None:
    assert chat_example(chat("Hello"), chat_tokenizer) is None
    assert chat_example(chat("Hello", " "), chat_tokenizer) is None


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


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alt"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_what_a_template_refuses_is_told_with_the_row(
    template: str, why: str, chat_tokenizer: Any
) -> None:
    strict = copy.deepcopy(chat_tokenizer)
    strict.chat_template = template
    with pytest.raises(DataError, match=f"rows:1: refused by the chat template: {why}"):
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
        ({"messages": ["Hello"]}, "rows:1, message 1: text, must be an object"),
        ({"messages": [{"role": "user"}]}, "rows:1, message 1: no key 'content'; its keys: role"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "'content' is a list, must be text"),
    ],
)
def test_a_row_that_is_no_conversation_is_told(
    chat_tokenizer: Any, value: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        chat_example(Row("rows:1", value), chat_tokenizer)


def test_an_answer_is_not_taken_for_the_same_words_of_the_user(chat_tokenizer: Any) -> None:
    counting = copy.deepcopy(chat_tokenizer)
    counting.chat_template = COUNTING
    example = chat_example(chat("Say 4", "4", "Say 4 again", "4"), counting)
    assert answers(example) == ["4<|im_end|>\n", "<think></think>4<|im_end|>\n"]
    assert example
    for start, _ in example.answers:
        assert example.text[:start].endswith("assistant\n")


@given(contents=st.lists(spoken, min_size=2, max_size=6))
def test_sharegpt_is_the_same_conversation_under_other_names(
    chat_tokenizer: Any, contents: list[str]
) -> None:
    names = ("human", "gpt")
    turns = [{"from": names[n % 2], "value": text} for n, text in enumerate(contents)]
    found = chat_example(Row("r", {"conversations": turns}), chat_tokenizer)
    assert found == chat_example(chat(*contents), chat_tokenizer)


def test_a_speaker_that_nobody_knows_is_told_with_those_that_are_known(chat_tokenizer: Any) -> None:
    row = Row("rows:1", {"conversations": [{"from": "narrator", "value": "Once"}]})
    with pytest.raises(DataError, match="rows:1, message 1: 'from' is 'narrator', must be one of"):
        chat_example(row, chat_tokenizer)


@pytest.mark.parametrize(("form", "key"), [("completion", "completion"), ("preference", "chosen")])
def test_prompt_and_answer_are_texts_end_to_end_or_a_conversation(
    form: RowFormat, key: str, chat_tokenizer: Any
) -> None:
    def of(prompt: Any, answer: Any) -> Example | None:
        row = Row("r", {"prompt": prompt, key: answer, "rejected": "no"})
        return example_of(row, form, chat_tokenizer, "finetune.data")

    plain = of("1 + 1 =", " 2")
    assert plain == Example("1 + 1 = 2", ((7, 9),))
    assert of("1 + 1 =", " ") is None
    chatted = chat_example(chat("1 + 1?", "2"), chat_tokenizer)
    assert answers(chatted) == ["2<|im_end|>\n"]
    assert of([user("1 + 1?")], [assistant("2")]) == chatted
    assert of([user("1 + 1?")], "2") == chatted
    assert of("1 + 1?", [assistant("2")]) == chatted
    assert of("1 + 1?", [user("1 + 1?"), assistant("2")]) == chatted
    assert of(None, [user("1 + 1?"), assistant("2")]) == chatted
    assert of([user("1 + 1?")], [user("1 + 1?"), assistant("2")]) == chatted


def test_what_the_assistant_says_in_a_prompt_is_prompt(chat_tokenizer: Any) -> None:
    prompt = [user("1 + 1?"), assistant("2"), user("2 + 2?")]
    row = Row("r", {"prompt": prompt, "completion": [assistant("4")]})
    found = example_of(row, "completion", chat_tokenizer, "finetune.data")
    assert answers(found) == ["4<|im_end|>\n"]


@pytest.mark.parametrize(
    ("keys", "form"),
    [
        ("messages", "chat"),
        ("conversations id", "chat"),
        ("instruction input output text", "alpaca"),
        ("prompt completion", "completion"),
        ("prompt chosen rejected", "preference"),
        ("chosen rejected", "preference"),
        ("prompt chosen rejected messages", "chat"),
        ("prompt", None),
        ("text", None),
    ],
)
def test_the_keys_of_a_row_tell_its_format(keys: str, form: str | None) -> None:
    assert format_of(set(keys.split())) == form


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": "2"}, "rows:1: no key 'prompt'; its keys: completion"),
        ({"prompt": "1"}, "rows:1: no key 'completion'"),
        ({"prompt": 1, "completion": "2"}, "rows:1: 'prompt' is a number, must be text"),
        ({"prompt": [], "completion": "2"}, "rows:1: 'prompt' must be a list of objects with role"),
        ("1 + 1", "rows:1: text, must be an object with the key 'prompt'"),
    ],
)
def test_a_row_without_prompt_or_answer_is_told(
    chat_tokenizer: Any, row: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        example_of(Row("rows:1", row), "completion", chat_tokenizer, "finetune.data")
