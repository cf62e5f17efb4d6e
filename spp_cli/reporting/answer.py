"""How every command ends: its result on stdout, all else on stderr, and the exit code."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spp_cli import processes
from spp_cli.errors import CheckFailed, SppError
from spp_cli.foreign import in_json, printable
from spp_cli.progress import Reporter, Silent
from spp_cli.reporting.failures import INTERRUPTED, failure
from spp_cli.reporting.terminal import quieten_libraries, reporter

__all__ = ["Answer", "Manner", "give"]


@dataclass(frozen=True)
class Manner:
    """How a command is to speak: the options --json, --quiet and --debug."""

    json: bool = False
    quiet: bool = False
    debug: bool = False


@dataclass(frozen=True)
class Answer:
    """What a command has to say: a document for machines, a text for people.

    ``failed``: what is wrong all the same, and ends the command with the exit ``code``.
    """

    document: Any
    text: str
    failed: str = ""
    code: int = CheckFailed.exit_code


def give(manner: Manner, work: Callable[[Reporter], Answer]) -> int:
    """Do the work, show what came of it, and return the exit code."""
    quieten_libraries(debug=manner.debug, quiet=manner.quiet or manner.json)
    main = processes.is_main()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout holds the result and nothing else
            answer = work(reporter(quiet=manner.quiet) if main else Silent())
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - here all errors end
        message, code = failure(error)
        if isinstance(error, SppError) and processes.count() > 1:
            if not processes.has_to_tell(message):
                return code
            if not main:
                message = f"process {processes.number() + 1} of {processes.count()}: {message}"
        if manner.debug:
            traceback.print_exception(error)
        if manner.json and main:
            _show(_as_json({"error": message, "exit_code": code}))
        _complain(message if code == INTERRUPTED else as_errors(message))
        return code
    if not main:
        return 0
    unseen = _show(
        _as_json(answer.document) if manner.json else printable(answer.text, coloured=True)
    )
    if unseen is not None:
        message, code = failure(unseen)
        _complain(as_errors(f"stdout: {message}"))
        return code
    if answer.failed:
        _complain(as_errors(answer.failed))
    return answer.code if answer.failed else 0


def _as_json(document: Any) -> str:
    return in_json(json.dumps(document, indent=2, ensure_ascii=False))


def _show(text: str) -> OSError | None:
    """Print on stdout; return why that failed, but not that a reader had seen enough."""
    try:
        print(text, end="\n" if text else "", flush=True)
    except OSError as error:
        # What is still in the buffer must not fail once more when Python ends.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return None if isinstance(error, BrokenPipeError) else error
    return None


def as_errors(message: str) -> str:
    """Return the message with "error: " before each line: one line is one mistake."""
    return "\n".join(f"error: {line}" for line in printable(message).split("\n") if line)


def _complain(message: str) -> None:
    print(message, file=sys.stderr)
