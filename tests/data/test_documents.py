"""Chats and instructions are read as the model is given them, texts as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spp_cli.config import CalibrationConfig, SourceFormat, TextConfig
from spp_cli.data.calibration import calibration_tokens
from spp_cli.data.conversations import chat_example
from spp_cli.data.documents import calibration_documents
from spp_cli.data.files import Row
from spp_cli.data.prompts import alpaca_example, encode_example
from spp_cli.data.tokens import encode, encode_document
from spp_cli.errors import DataError

ALPACA = [{"instruction": f"Add {n}.", "input": "1", "output": f"1 + {n}"} for n in range(30)]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"Add {n}."},
            {"role": "assistant", "content": f"{n + 1}"},
        ]
    }
    for n in range(30)
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def tokens_of(
    path: Path, tokenizer: Any, form: SourceFormat = "auto", field: str = "text"
) -> list[list[int]]:
    """Return the tokens of every document of a file."""
    config = TextConfig(source=str(path), field=field)
    documents = calibration_documents(config, form, tokenizer)
    return [documents.encode_whole(item) for item in documents.items]


@pytest.mark.parametrize("form", ["auto", "chat"])
def test_a_chat_is_in_the_models_own_template_as_finetune_has_it(
    form: SourceFormat, chat_tokenizer: Any, tmp_path: Path
) -> None:
    found = tokens_of(write(tmp_path / "a.jsonl", CHATS), chat_tokenizer, form)
    for row, ids in zip(CHATS, found, strict=True):
        example = chat_example(Row("r", row), chat_tokenizer)
        assert example
        assert ids == encode_example(example, chat_tokenizer, train_on_prompt=True)[0]
    begin = chat_tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert [ids.count(begin) for ids in found] == [2] * len(CHATS)


@pytest.mark.parametrize("key", ["completion", "chosen"])
def test_a_prompt_and_what_comes_after_it_are_one_document_as_finetune_has_it(
    key: str, tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{n} + 1 =", key: f" {n + 1}", "rejected": " 0"} for n in range(9)]
    found = tokens_of(write(tmp_path / "a.jsonl", rows), tokenizer)
    assert found == [encode_document(tokenizer, f"{n} + 1 = {n + 1}") for n in range(9)]


@pytest.mark.parametrize("form", ["auto", "alpaca"])
def test_an_instruction_without_a_template_is_in_alpacas_as_finetune_has_it(
    form: SourceFormat, tokenizer: Any, tmp_path: Path
) -> None:
    found = tokens_of(write(tmp_path / "a.jsonl", ALPACA), tokenizer, form)
    for row, ids in zip(ALPACA, found, strict=True):
        example = alpaca_example(Row("r", row))
        assert example
        assert ids == encode_example(example, tokenizer, train_on_prompt=True)[0]
        assert ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("form", ["auto", "chat"])
def test_an_instruction_with_a_template_is_a_turn_in_it_unless_alpaca_is_asked_for(
    form: SourceFormat, chat_tokenizer: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [*ALPACA, {"instruction": "Wait.", "output": "Yes."}])
    first, *_, last = tokens_of(path, chat_tokenizer, form)
    assert chat_tokenizer.decode(first) == (
        "<|im_start|>user\nAdd 0.\n\n1<|im_end|>\n<|im_start|>assistant\n1 + 0<|im_end|>\n"
    )
    assert "user\nWait.<|im_end|>" in chat_tokenizer.decode(last)
    alpaca = tokens_of(path, chat_tokenizer, "alpaca")
    assert "### Instruction:\nAdd 0." in chat_tokenizer.decode(alpaca[0])


@pytest.mark.parametrize("form", ["auto", "text"])
def test_rows_with_the_field_are_text_whatever_else_they_have(
    form: SourceFormat, chat_tokenizer: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [{**CHATS[0], **ALPACA[0], "body": "def one(): pass"}])
    config = TextConfig(source=str(path), field="body")
    documents = calibration_documents(config, form, chat_tokenizer)
    (item,) = documents.items
    assert documents.encode(item) == encode(chat_tokenizer, "def one(): pass")
    assert documents.encode_whole(item) == encode_document(chat_tokenizer, "def one(): pass")


def test_a_row_in_which_nobody_answers_is_no_document(
    chat_tokenizer: Any, tokenizer: Any, tmp_path: Path
) -> None:
    silent = [{"messages": CHATS[0]["messages"][:1]}, *CHATS[1:2]]
    first, second = tokens_of(write(tmp_path / "a.jsonl", silent), chat_tokenizer)
    assert first == []
    assert second
    blank = [{"instruction": "Add", "output": " "}]
    assert tokens_of(write(tmp_path / "b.jsonl", blank), tokenizer) == [[]]


def test_rendered_rows_are_packed_without_padding(chat_tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", CHATS)
    config = CalibrationConfig(source=str(path), samples=4)
    found = calibration_tokens(config, chat_tokenizer, 48, demo=False)
    assert (found.tokens.shape, found.recipe) == ((4, 48), "packed")
    stream = chat_tokenizer.decode(found.tokens[0].tolist())
    assert stream.count("<|im_start|>") >= 2
    assert (
        chat_tokenizer.pad_token_id is None
        or not found.tokens.eq(chat_tokenizer.pad_token_id).any()
    )


@pytest.mark.parametrize(
    ("rows", "form", "message"),
    [
        (CHATS, "auto", r"format chat needs a chat template, and this .* \(format: alpaca\)"),
        (ALPACA, "text", "a.jsonl:1: no key 'text'; its keys: instruction, input, output. Set "),
        ([{"question": "1?"}], "auto", "a.jsonl:1: no key 'text'; its keys: question. Set prune"),
        (CHATS, "alpaca", "a.jsonl:1: no key 'instruction'; .* or set prune.calibration.format"),
        ([], "alpaca", "prune.calibration.source: .*a.jsonl holds no row. Name one that does"),
        ([], "auto", "prune.calibration.source: .*a.jsonl holds no text. Name one that does"),
    ],
)
def test_rows_that_are_not_in_the_form_are_told(
    rows: list[Any], form: SourceFormat, message: str, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        tokens_of(write(tmp_path / "a.jsonl", rows), tokenizer, form)


@pytest.mark.parametrize("source", ["demo", "text.txt"])
def test_a_plain_text_is_no_chat(source: str, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("import this\n")
    name = source if source == "demo" else str(tmp_path / source)
    says = f"prune.calibration: {name} is plain text, and format is chat. Set format to text, or"
    with pytest.raises(DataError, match=says):
        calibration_documents(TextConfig(source=name), "chat", tokenizer)


def test_the_keys_of_a_hub_data_set_are_refused_for_rows_of_a_file(
    chat_tokenizer: Any, tmp_path: Path
) -> None:
    config = TextConfig(source=str(write(tmp_path / "a.jsonl", CHATS)), subset="en")
    with pytest.raises(DataError, match="subset and split belong to a hub data set"):
        calibration_documents(config, "auto", chat_tokenizer)
