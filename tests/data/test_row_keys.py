"""What a row says next to its text is honoured, or counted by name; nothing vanishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data.chat_templates import with_template

from spp_cli.config import TrainingDataConfig
from spp_cli.data.conversations import chat_example, conversation_example
from spp_cli.data.examples import RowFormat, example_of
from spp_cli.data.files import Row
from spp_cli.data.formats import format_of
from spp_cli.data.instructions import training_rows
from spp_cli.data.pools import Wanted
from spp_cli.data.prompts import IGNORED, Example, alpaca_example, encode_example
from spp_cli.data.row_keys import unlearnt, unread_keys
from spp_cli.data.token_rows import listed
from spp_cli.errors import DataError
from spp_cli.progress import Silent

ASK = {"role": "user", "content": "2 + 2?"}
BAD = {"role": "assistant", "content": "I hate sums."}
GOOD = {"role": "assistant", "content": "4"}


@pytest.fixture(scope="module")
def chatty(tokenizer: Any) -> Any:
    return with_template(tokenizer, "thoughts last")


def of(value: dict[str, Any], tokenizer: Any, form: RowFormat | None = None) -> Example | None:
    form = form or format_of(set(value))
    assert form
    return example_of(Row("rows:1", value), form, tokenizer, "finetune.data")


def answers(example: Example | None) -> list[str]:
    assert example
    return [example.text[start:end] for start, end in example.answers]


@pytest.mark.parametrize(
    ("form", "value", "reason"),
    [
        ("completion", {"label": False}, "labelled false"),
        ("completion", {"label": 0}, "labelled false"),
        ("completion", {"label": "False"}, "labelled false"),
        ("completion", {"label": True}, ""),
        ("completion", {"label": 1, "weight": 1.0}, ""),
        ("chat", {"kto_tag": False}, "labelled false"),
        ("chat", {"label": 0}, ""),  # the number of a class
        ("alpaca", {"label": "toxic"}, ""),
        ("preference", {"label": False}, ""),
        ("alpaca", {"weight": 0}, "of weight 0"),
        ("text", {"weight": 0.0}, "of weight 0"),
        ("chat", {"messages": [ASK, {**BAD, "weight": 0}]}, "of weight 0"),
        ("chat", {"messages": [ASK, {**BAD, "weight": 0}, ASK, GOOD]}, ""),
        ("chat", {"conversations": [{"from": "gpt", "value": "x", "weight": 0}]}, "of weight 0"),
    ],
)
def test_a_row_says_that_it_is_not_to_be_learnt(form: str, value: Any, reason: str) -> None:
    assert unlearnt(Row("r", value), form) == reason


def test_a_message_of_weight_0_is_read_and_never_learnt(chatty: Any) -> None:
    row = Row("rows:1", {"messages": [ASK, {**BAD, "weight": 0}, ASK, {**GOOD, "weight": 1}]})
    example = chat_example(row, chatty)
    assert answers(example) == ["<think>\n\n</think>\n\n4<|end|>\n"]
    # Nor is it where the loss is on all the rest.
    whole = chat_example(row, chatty, with_answers=False)
    assert whole
    ids, labels = encode_example(whole, chatty, train_on_prompt=True)
    silent = [token for token, label in zip(ids, labels, strict=True) if label == IGNORED]
    assert chatty.decode(silent) == "I hate sums.<|end|>\n"
    row = Row("rows:1", {"messages": [ASK, {**GOOD, "weight": 0.5}]})
    with pytest.raises(DataError, match=r"rows:1, message 2: weight is 0\.5, must be 0 \(not"):
        chat_example(row, chatty)


def test_a_ranking_row_is_learnt_as_what_was_chosen(chatty: Any) -> None:
    asked = [ASK, {"role": "assistant", "content": "Hm?"}, ASK]
    turns = [
        {"from": {"user": "human"}.get(m["role"], "gpt"), "value": m["content"]} for m in asked
    ]
    for chosen in (GOOD, [GOOD], "4", {"from": "gpt", "value": "4"}):
        for value in ({"messages": asked}, {"conversations": turns}, {"prompt": asked}):
            found = of({**value, "chosen": chosen, "rejected": "5"}, chatty)
            assert answers(found) == ["<think>\n\n</think>\n\n4<|end|>\n"]
    value = {"instruction": "Add", "input": "2 2", "chosen": "4", "rejected": "5"}
    expected = alpaca_example(Row("r", {"instruction": "Add", "input": "2 2", "output": "4"}))
    assert of(value, chatty) == expected


def test_system_and_tools_next_to_a_conversation_are_given_to_the_template(chatty: Any) -> None:
    tools = [{"type": "function", "function": {"name": "w", "parameters": {}}}]
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ahoy"}]
    value = {"system": "Be a pirate.", "conversations": turns, "tools": json.dumps(tools)}
    found = of(value, chatty)
    assert found
    assert found.text.startswith("<|from|>system\nBe a pirate.<|end|>\n")
    assert "tools" in unread_keys(Row("r", value), "chat", chatty)
    knowing = with_template(chatty, "thoughts last")
    knowing.chat_template = "{{ tools | tojson if tools }}" + knowing.chat_template
    found = of(value, knowing)
    assert found
    assert found.text.startswith(json.dumps(tools))
    assert unread_keys(Row("r", value), "chat", knowing) == []
    for wrong, message in (("{", "text that is not JSON"), ("7", "must be a list of objects")):
        with pytest.raises(DataError, match=f"rows:1: 'tools' (is|must).*{message.split()[-1]}"):
            of({**value, "tools": wrong}, chatty)


def test_alpacas_system_and_history_come_before_the_instruction(chatty: Any) -> None:
    row = Row("rows:1", {
        "instruction": "And 3?", "output": "6", "system": "You add.", "history": [["2?", "4"]],
    })  # fmt: skip
    example = alpaca_example(row)
    assert example
    assert example.text == (
        "You add.\n\n### Instruction:\n2?\n\n### Response:\n4\n\n"
        "### Instruction:\nAnd 3?\n\n### Response:\n6"
    )
    assert answers(example) == ["6"]
    chatted = conversation_example(row, chatty)
    assert chatted
    assert [part.split("\n")[0] for part in chatted.text.split("<|from|>")[1:]] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    with pytest.raises(DataError, match="rows:1: 'history' must be a list of pairs of texts"):
        alpaca_example(Row("rows:1", {**row.value, "history": ["2?"]}))


def test_keys_that_nothing_reads_are_counted_by_name(tokenizer: Any, tmp_path: Path) -> None:
    ending = with_template(tokenizer, "ended")
    call = [{"type": "function", "function": {"name": "w", "arguments": {}}}]
    rows: list[dict[str, Any]] = [
        {"messages": [ASK, {**GOOD, "content": f"It is {n}", "tool_calls": call, "weight": 1}],
         "id": n + 1, "tools": [], "label": "good", "meta": None}
        for n in range(20)
    ]  # fmt: skip
    rows[:4] = ({**row, "label": False} for row in rows[:4])
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainingDataConfig(source=str(path), validation_source=str(path), validation_samples=1)
    train, _ = training_rows(Wanted(config, ending, 256, 0, demo=False), Silent())
    account = train.account
    assert account.skipped["labelled false"] == 4
    assert account.unread == {"id": 20, "label": 16, "messages.tool_calls": 20}
    assert str(account).endswith("keys not used: id (20), label (16), messages.tool_calls (20))")
    assert train.described()["unread_keys"] == account.unread


def test_a_long_list_of_keys_is_cut() -> None:
    assert listed({f"k{n}": 1 for n in range(10)}).endswith("k7 (1), 2 more")
