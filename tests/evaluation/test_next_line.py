"""The embedded task: its questions are real code, always the same, and can be answered."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.data.stdlib import read_texts
from spp_cli.evaluation import next_line
from spp_cli.evaluation.next_line import questions


@pytest.fixture(scope="module")
def texts():
    return read_texts("test")


@pytest.fixture(scope="module")
def asked(texts):
    return questions(texts)


def places(texts, question):
    """Return the files that go on with the answer after the context, and the line it stands on."""
    follows = question["context"] + question["choices"][question["answer"]]
    return [
        (source, source[: source.index(follows)].count("\n") + follows.count("\n") + 1)
        for _, source in texts
        if follows in source
    ]


def test_the_answer_is_the_line_that_follows_in_a_held_out_module(texts, asked):
    assert len(asked) == 400
    assert all(places(texts, question) for question in asked)


def test_the_context_is_a_dozen_lines_and_the_indentation_of_the_next(asked):
    for question in asked:
        *lines, indentation = question["context"].split("\n")
        assert len(lines) == 12
        assert indentation.strip() == ""


def test_the_choices_are_four_distinct_lines_of_one_file_with_one_indentation(texts, asked):
    for question in asked:
        assert len(set(question["choices"])) == 4
        indentation = question["context"].rpartition("\n")[2]
        assert any(
            {indentation + choice for choice in question["choices"]}
            <= {line.rstrip() for line in source.splitlines()}
            for source, _ in places(texts, question)
        )


def test_no_choice_is_blank_or_short_or_a_comment(asked):
    for choice in (choice for question in asked for choice in question["choices"]):
        assert choice == choice.strip()
        assert len(choice) >= 8
        assert choice[0] not in "#'\""


def test_no_answer_is_part_of_a_docstring(texts, asked):
    docstrings = {
        source: {
            line
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            for line in range(node.lineno, node.end_lineno + 1)
        }
        for _, source in texts
    }
    for question in asked:
        assert any(line not in docstrings[source] for source, line in places(texts, question))


def test_every_position_is_the_answer_about_as_often(asked):
    answers = [question["answer"] for question in asked]
    assert all(60 <= answers.count(position) <= 140 for position in range(4))


def test_the_questions_do_not_depend_on_the_process():
    command = [
        sys.executable,
        "-c",
        "from spp_cli.evaluation import next_line as n; print(n.digest())",
    ]
    digests = {
        subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert digests == {next_line.digest()}


FILE = "".join(f"first_{i} = {i}\nif first_{i}:\n    second_{i} = {i}\n" for i in range(20))


@given(count=st.integers(1, 100))
def test_there_are_as_many_questions_as_asked_for_or_as_the_texts_allow(count):
    # Lines 13 to 60 can be asked for.
    assert len(questions([("file.py", FILE)], count)) == min(count, 48)


@pytest.mark.parametrize(
    "source", ["", "x = 1\n" * 50, "\n".join(f"line_{i} = 1" for i in range(12))]
)
def test_text_that_is_too_short_or_too_uniform_gives_no_question(source):
    assert questions([("file.py", source)]) == []


def test_code_inside_a_docstring_is_not_asked_for():
    documented = 'def f():\n    """\n' + FILE.replace("\n", "\n    ") + '\n    """\n'
    assert questions([("file.py", documented)]) == []
