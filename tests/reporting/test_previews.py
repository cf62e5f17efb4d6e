"""A preview shows what is trained on, with colour or without, and nothing that rows might do."""

from __future__ import annotations

from typing import Any

from spp_cli.reporting.previews import rows_preview

ROW = {
    "place": "rows.jsonl:1",
    "tokens": 9,
    "length": 9,
    "trained": 3,
    "pieces": [
        {"text": "<s>Add 1.\n", "trained": False},
        {"text": "x + 1</s>", "trained": True},
    ],
}


def document(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    facts = {"source": "rows.jsonl", "format": "alpaca", "length": 9, "packing": False}
    return {**facts, "left_out": {}, "unread_keys": {}, "rows": list(rows), **more}


def test_without_colour_what_is_trained_on_stands_in_brackets() -> None:
    assert rows_preview(document(ROW), colour=False).splitlines() == [
        "rows.jsonl (alpaca), at most 9 tokens a row; ⟦trained on⟧, the rest is only read",
        "",
        "── 1  rows.jsonl:1: 9 tokens, 3 of them trained on",
        "<s>Add 1.",
        "⟦x + 1</s>⟧",
    ]


def test_with_colour_it_is_in_colour_and_there_are_no_brackets() -> None:
    shown = rows_preview(document(ROW), colour=True)
    assert "\x1b[32mtrained on\x1b[0m" in shown
    assert "\x1b[32mx + 1</s>\x1b[0m" in shown
    assert "⟦" not in shown


def test_it_tells_where_a_row_is_cut_and_what_is_left_out() -> None:
    left_out = {"empty": 2}
    shown = rows_preview(document({**ROW, "tokens": 1009}, left_out=left_out), colour=False)
    assert shown.splitlines()[-3:] == [
        "… cut here: 1,000 tokens more",
        "",
        "left out on the way: 2 empty",
    ]


def test_a_row_cannot_command_the_terminal() -> None:
    evil = {**ROW, "pieces": [{"text": "a\tb\n\x1b[2Jgone\x9b\r", "trained": True}]}
    shown = rows_preview(document(evil), colour=False)
    assert "\x1b" not in shown
    assert r"⟦a	b" in shown
    assert r"\x1b[2Jgone\x9b\r⟧" in shown
