"""A preview is the text the model sees, in pieces that agree with the labels."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from spp_cli.data.files import Row
from spp_cli.data.instructions import Encoded
from spp_cli.data.preview import preview
from spp_cli.data.prompts import Example, alpaca_example, encode_example

spoken = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def encoded(tokenizer: Any, example: Example | None, *, on_prompt: bool, cut: int = 999) -> Encoded:
    assert example
    ids, labels = encode_example(example, tokenizer, train_on_prompt=on_prompt)
    return Encoded("r", ids[:cut], labels[:cut], len(ids), "")


@given(instruction=spoken, output=spoken.filter(str.strip), cut=st.integers(30, 90))
def test_the_pieces_together_are_the_text_that_the_model_sees(
    tokenizer: Any, instruction: str, output: str, cut: int
) -> None:
    example = alpaca_example(Row("r", {"instruction": instruction, "output": output}))
    row = encoded(tokenizer, example, on_prompt=False, cut=cut)
    shown = preview(row, tokenizer)
    text = "".join(piece["text"] for piece in shown["pieces"])
    whole = tokenizer.decode(row.ids, clean_up_tokenization_spaces=False)
    assert text == whole
    assert (shown["length"], shown["tokens"]) == (len(row.ids), row.tokens)


def test_the_answer_is_trained_on_with_its_end_and_nothing_before_it(tokenizer: Any) -> None:
    example = alpaca_example(Row("r", {"instruction": "Add", "output": "1 + 1"}))
    first, last = preview(encoded(tokenizer, example, on_prompt=False), tokenizer)["pieces"]
    assert first["text"].startswith(tokenizer.bos_token)
    assert first["text"].endswith("### Response:\n")
    assert last == {"text": f"1 + 1{tokenizer.eos_token}", "trained": True}


def test_on_the_prompt_all_is_trained_on_but_the_first_token(tokenizer: Any) -> None:
    example = alpaca_example(Row("r", {"instruction": "Add", "output": "2"}))
    row = encoded(tokenizer, example, on_prompt=True)
    shown = preview(row, tokenizer)
    assert [piece["trained"] for piece in shown["pieces"]] == [False, True]
    assert shown["pieces"][0]["text"] == tokenizer.bos_token
    assert shown["trained"] == len(row.ids) - 1
