"""Texts beside each other: no sign is lost, no line is too long, none commands the terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from spp_cli.reporting.side_by_side import side_by_side

WORDS = st.text(st.characters(categories=["L", "N"], include_characters=" \n"), max_size=200)


@given(WORDS, WORDS, st.integers(70, 120))
def test_columns_hold_every_sign_and_no_line_is_wider_than_the_terminal(
    one: str, other: str, width: int
) -> None:
    lines = side_by_side({"a": one, "b": other}, width).splitlines()
    assert all(cell_len(line) <= width for line in lines)
    shown = sorted("".join("".join(lines[2:]).split()))
    assert shown == sorted("".join((one + other).split()))


def test_in_a_narrow_terminal_one_stands_below_the_other() -> None:
    text = side_by_side({"dense": "one\n  two", "pruned": "three"}, 60)
    assert text == "── dense\none\n  two\n\n── pruned\nthree"


def test_indents_stay_and_long_lines_break_between_words() -> None:
    code = "def f(x):\n    return x"
    text = side_by_side({"dense": code, "pruned": "word " * 12}, 70)
    assert text.splitlines()[2:] == [
        "def f(x):                           word word word word word word",
        "    return x                        word word word word word word",
    ]


def test_control_characters_are_spelled_out() -> None:
    assert "\x1b" not in side_by_side({"a": "\x1b[31mred", "b": ""}, 100)
