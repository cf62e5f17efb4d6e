"""Text that others wrote commands no terminal, forges no line, and is no formula."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from spp_cli.errors import ConfigError, ModelError
from spp_cli.foreign import as_cell, in_json, one_line, printable
from spp_cli.reporting.answer import Answer, Manner, give
from spp_cli.reporting.comparison_table import _csv
from spp_cli.reporting.tables import table
from spp_cli.reporting.terminal import Lines

EVIL = "x\x1b[2J\x9b31m\r\x85\u2028\u202e\ud800"


def test_what_commands_a_terminal_is_spelled_out() -> None:
    assert printable(EVIL) == r"x\x1b[2J\x9b31m\r\x85\u2028\u202e\ud800"
    assert printable("naïve → 名\ta\nb") == "naïve → 名\ta\nb"
    assert one_line("a\nb") == r"a\nb"
    assert json.loads(in_json(json.dumps(EVIL, ensure_ascii=False))) == EVIL


def test_a_name_with_a_line_end_makes_no_second_mistake() -> None:
    assert str(ModelError("x\nerror: y is missing")) == r"x\nerror: y is missing"
    assert str(ConfigError("first", "second")) == "first\nsecond"


@pytest.mark.parametrize("kind", [ModelError, RuntimeError, OSError])
def test_an_error_shows_foreign_text_on_one_line(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> Answer:
        raise kind(f"{EVIL} is missing")

    assert give(Manner(), fail) in (2, 70)
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert "\x1b" not in shown


@pytest.mark.parametrize("as_json", [False, True])
def test_an_answer_shows_foreign_text(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert give(Manner(json=as_json), lambda _: Answer({"name": EVIL}, EVIL)) == 0
    shown = capsys.readouterr().out
    assert not set("\x1b\x9b\r\x85\u2028\u202e\ud800") & set(shown)
    assert not as_json or json.loads(shown) == {"name": EVIL}


def test_remarks_and_cells_are_one_line_each() -> None:
    console = Console(file=io.StringIO(), width=200)
    Lines(console).warn(f"{EVIL}\nerror: forged")
    Lines(console).say(f"{EVIL}\nerror: forged")
    assert isinstance(console.file, io.StringIO)
    assert len(console.file.getvalue().splitlines()) == 2
    assert len(table(["a"], [[f"{EVIL}\nb"]]).splitlines()) == 3


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", "\t=1"])
def test_a_cell_of_csv_is_no_formula(text: str) -> None:
    assert as_cell(text) == f"'{text}"
    assert _csv(["run", "change"], [{"run": text, "change": -0.5}]) == f"run,change\n'{text},-0.5"
