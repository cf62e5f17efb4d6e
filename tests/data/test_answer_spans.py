"""Loss falls on the assistant's turns and their ends, whatever a template makes of the rest."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from data.chat_templates import STAND_INS, with_template
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import spp_cli.demo
from spp_cli.data.conversations import chat_example
from spp_cli.data.files import Row
from spp_cli.data.instructions import Encoded
from spp_cli.data.marked_chats import literals_of
from spp_cli.data.preview import preview
from spp_cli.data.prompts import IGNORED, Example, encode_example
from spp_cli.errors import DataError

# Words, what templates look for, what they write themselves, blanks, and what stands for words.
PIECES = [
    "4",
    "yes",
    "user",
    "assistant",
    "é😀",
    "<think>",
    "</think>",
    "<|end|>",
    "<got>",
    "[/ASK]",
]
PIECES += [" ", "\n", "\n\n", '"', "\\", "'", "<b>", chr(0x30000), chr(0x30001), chr(0x10FFFD)]
words = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)
conversations = st.lists(st.tuples(words, words), min_size=1, max_size=3)


@cache
def tokenizer_of(name: str, *, tells: bool = False) -> Any:
    demo = AutoTokenizer.from_pretrained(Path(spp_cli.demo.__file__).parent / "model")
    return with_template(demo, name, tells=tells)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def turns(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [message for asked, said in pairs for message in (user(asked), assistant(said))]


def example_of(name: str, messages: list[Any], *, tells: bool = False) -> Example:
    row = Row("rows:7", {"messages": messages})
    example = chat_example(row, tokenizer_of(name, tells=tells))
    assert example
    return example


def located(name: str, messages: list[Any]) -> Example | None:
    """Return the example, or None if the template may look for the very words of an answer."""
    try:
        return example_of(name, messages)
    except DataError as error:
        if "may look for the very words" in str(error):
            return None
        raise


def answers(example: Example) -> list[str]:
    return [example.text[start:end] for start, end in example.answers]


@pytest.mark.parametrize("name", STAND_INS)
@given(pairs=conversations, last=st.booleans())
def test_the_turns_are_those_that_the_template_would_tell(
    name: str, pairs: list[tuple[str, str]], last: bool
) -> None:
    messages = [*turns(*pairs), *([user("bye")] if last else [])]
    said = [answer for _, answer in pairs if answer.strip()]
    if not said:
        return
    told = example_of(name, messages, tells=True)
    found = located(name, messages)
    if found is None:  # an answer may be nothing but words that the template looks for
        assert any(tag in answer for answer in said for tag in literals_of(STAND_INS[name]))
        return
    assert found.text == told.text
    if name == "thoughts invited" and any("<think>" in answer for answer in said):
        # Whether the answer or the invitation has opened these thoughts cannot be told.
        assert {end for _, end in found.answers} <= {end for _, end in told.answers}
        return
    unseen = set(told.answers) - set(found.answers)
    assert set(found.answers) <= set(told.answers)
    # A turn of which the template shows no words is none to learn.
    frame = re.compile(r"(</?think>|<\|\w+\|>|</s>|\s)*")
    assert all(frame.fullmatch(told.text[start:end]) for start, end in unseen)


@pytest.mark.parametrize("name", STAND_INS)
def test_what_is_previewed_and_trained_is_each_answer_with_its_end(name: str) -> None:
    pairs = [("Say 4", "4"), ("And 4 again?", "It is 4."), ("Say nothing", ""), ("4", "4")]
    tokenizer = tokenizer_of(name)
    example = example_of(name, turns(*pairs))
    ids, labels = encode_example(example, tokenizer, train_on_prompt=False)
    shown = preview(Encoded("r", ids, labels, len(ids), ""), tokenizer)
    trained = [piece["text"] for piece in shown["pieces"] if piece["trained"]]
    assert trained == answers(example)
    assert len(trained) == 3  # an empty answer is none
    for text, said in zip(trained, ("4", "It is 4.", "4"), strict=True):
        assert said in text
        assert any(end in text for end in ("<|end|>", "<|stop|>", "</s>"))
    runs = sum(a == IGNORED != b for a, b in pairwise(labels))
    assert runs == 3


def test_the_rules_of_the_last_question_change_no_answer() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *turns(("a", "b"), ("c", "d"))]
    example = example_of("rules last", messages)
    assert example.text == "<s>[ASK] a[/ASK] b</s>[ASK] Be brief.\n\nc[/ASK] d</s>"
    assert answers(example) == [" b</s>", " d</s>"]


def test_thoughts_are_learnt_where_they_are_shown() -> None:
    inline = turns(("a", "<think>\nhm\n</think>\n\nb"), ("c", "<think>\noh\n</think>\n\nd"))
    apart = [user("a"), assistant("b", reasoning_content="hm")]
    apart += [user("c"), assistant("d", reasoning_content="oh")]
    for messages in (inline, apart):
        example = example_of("thoughts last", messages)
        assert answers(example) == ["b<|end|>\n", "<think>\noh\n</think>\n\nd<|end|>\n"]
        invited = example_of("thoughts invited", messages)
        assert answers(invited) == ["b<|end|>\n", "oh\n</think>\n\nd<|end|>\n"]


@pytest.mark.parametrize("arguments", [{"t": 1}, '{"t": 1}'])
def test_calls_of_tools_are_what_the_assistant_says_and_results_are_not(arguments: Any) -> None:
    call = [{"type": "function", "id": "x1", "function": {"name": "w", "arguments": arguments}}]
    messages = [user("w?"), assistant(None, tool_calls=call)]
    messages += [{"role": "tool", "content": "7", "name": "w"}, assistant("7 degrees")]
    found = example_of("rules last", messages)
    assert answers(found) == ['[CALL] [{"name": "w", "arguments": {"t": 1}}]</s>', " 7 degrees</s>"]
    found = example_of("thoughts last", messages)
    called, said = answers(found)
    assert called == '<think>\n\n</think>\n\n<call>w {"t": 1}</call><|end|>\n'
    assert said == "<think>\n\n</think>\n\n7 degrees<|end|>\n"


def test_a_template_that_rewrites_what_is_said_is_refused_with_the_row_and_the_way_out() -> None:
    tokenizer = with_template(tokenizer_of("ended"), "ended")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m.content }}<|end|>", "m.content | upper }}<|end|>"
    )
    row = Row("rows:7", {"messages": turns(("a", "words"))})
    with pytest.raises(
        DataError, match=r"rows:7: where the answers stand .* Leave this row out, or"
    ):
        chat_example(row, tokenizer)
    whole = chat_example(row, tokenizer, with_answers=False)
    assert whole
    assert "WORDS" in whole.text
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(DataError, match="shows none of the words"):
        chat_example(row, tokenizer)


def test_a_template_refuses_by_row_whatever_it_raises() -> None:
    tokenizer = with_template(tokenizer_of("ended"), "ended")
    row = Row("rows:7", {"messages": turns(("a", "b"))})
    for fault in ("raise_exception('no')", "'a' + 1", "messages[9].content.x", "1 // 0"):
        tokenizer.chat_template = "{{ " + fault + " }}"
        with pytest.raises(DataError, match=r"^rows:7: refused by the chat template: "):
            chat_example(row, tokenizer)
