"""The embedded zero-shot task: given a dozen lines of real code, which of four lines comes next?

The questions are made of modules of the running Python's standard library that the embedded model
never saw in training, so the task needs no download and runs on every machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import tokenize
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Any

from spp_cli.data.stdlib import read_texts

__all__ = ["NAME", "digest", "questions", "task"]

NAME = "next-line"
VERSION = 1.0  # raised when the same modules come to give other questions
CONTEXT_LINES = 12
CHOICES = 4
QUESTIONS = 400
SHORTEST = 8  # characters; "else:" and ")" can be told from a long line by their length alone
SEED = 0
Question = dict[str, Any]


def task() -> Any:
    """Return the task for lm-evaluation-harness: multiple choice, with acc and acc_norm.

    Raises:
        DataError: this Python has no source code of the modules that the questions come from.
    """
    import datasets
    from lm_eval.api.task import ConfigurableTask

    def dataset(**_: Any) -> dict[str, datasets.Dataset]:
        return {"test": datasets.Dataset.from_list(list(_held_out_questions()))}

    means = {"aggregation": "mean", "higher_is_better": True}
    return ConfigurableTask(
        config={
            "task": NAME,
            "custom_dataset": dataset,
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "context",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "target_delimiter": "",
            "num_fewshot": 0,
            "metric_list": [{"metric": "acc", **means}, {"metric": "acc_norm", **means}],
            "metadata": {"version": VERSION},
        }
    )


def digest() -> str:
    """Return the SHA-256, in hex, of the questions; another Python version may have others."""
    return hashlib.sha256(json.dumps(_held_out_questions()).encode()).hexdigest()


@cache
def _held_out_questions() -> tuple[Question, ...]:
    return tuple(questions(read_texts("test")))


def questions(texts: Iterable[tuple[str, str]], count: int = QUESTIONS) -> list[Question]:
    """Return at most ``count`` questions made of Python source, always the same for the same texts.

    A question has a ``context``, twelve lines and the indentation of the line that follows; its
    four ``choices``, lines without their indentation; and the ``answer``, the index of the line
    that truly follows. The other three are real lines of the same file with the same indentation.
    All four are code: no comment, no part of a docstring, nothing too short to be told by.
    Questions come in random order, so that the first few are a fair sample.

    Args:
        texts: name and source of each file.
    """
    files = [_File(source) for _, source in texts]
    places = [(file, index) for file in files for index in file.places()]
    rng = random.Random(SEED)
    return [_question(*place, rng) for place in rng.sample(places, min(count, len(places)))]


def _question(file: _File, index: int, rng: random.Random) -> Question:
    indentation, line = file.code[index]
    choices = [line, *rng.sample(file.others(index), CHOICES - 1)]
    rng.shuffle(choices)
    before = "\n".join(file.lines[index - CONTEXT_LINES : index])
    return {
        "context": f"{before}\n{indentation}",
        "choices": choices,
        "answer": choices.index(line),
    }


class _File:
    """A source file: its ``lines``, and by index those that are ``code``: (indentation, line)."""

    def __init__(self, source: str) -> None:
        self.lines = source.splitlines()
        self.code = _code_lines(source)
        self._alike: dict[str, list[str]] = defaultdict(list)  # distinct lines by indentation
        for indentation, line in dict.fromkeys(self.code.values()):
            self._alike[indentation].append(line)

    def others(self, index: int) -> list[str]:
        """Return the lines of code that the line at ``index`` could be taken for."""
        indentation, line = self.code[index]
        return [other for other in self._alike[indentation] if other != line]

    def places(self) -> list[int]:
        """Return the indices of the lines that a question can ask for."""
        return [
            index
            for index, (indentation, _) in self.code.items()
            if index >= CONTEXT_LINES and len(self._alike[indentation]) >= CHOICES
        ]


def _code_lines(source: str) -> dict[int, tuple[str, str]]:
    """Return indentation and text, by index, of the lines that begin with a token of code."""
    lines = source.splitlines()
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type not in (tokenize.NAME, tokenize.OP, tokenize.NUMBER):
            continue
        # Where a docstring ends, code may follow on its last line: that line is not code alone.
        indentation, line = lines[row - 1][:column], lines[row - 1][column:].rstrip()
        if not indentation.strip() and len(line) >= SHORTEST:
            found[row - 1] = (indentation, line)
    return found
