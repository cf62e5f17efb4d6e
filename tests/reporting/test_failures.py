"""What the user reads of an error, and what the shell gets."""

from __future__ import annotations

import errno

import pytest
import torch

from spp_cli.errors import CheckFailed, ModelError
from spp_cli.reporting.failures import failure


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [
        (ModelError("no tokenizer"), "no tokenizer", 2),
        (CheckFailed("12 groups violate 2:4"), "12 groups violate 2:4", 1),
        (KeyboardInterrupt(), "Run the same command again to go on", 130),
        (MemoryError(), "out of memory. What was done is resumed with", 2),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            "smaller batch_size and gradient_accumulation_steps larger by as much",
            2,
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"), "out of memory. What", 2),
        (OSError(errno.ENOSPC, "No space left on device", "x.json"), "x.json: No space left", 2),
        (OSError(errno.ENOSPC, "No space left on device"), "Free some space", 2),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "x: No such file", 2),
        (ConnectionError("host is down\nlong story"), "host is down", 2),
        (KeyError("x"), "KeyError: 'x'. This is a mistake in spp", 70),
        (RuntimeError(), "RuntimeError: no message", 70),
    ],
)
def test_an_error_is_one_line_and_a_code(error: BaseException, words: str, code: int) -> None:
    text, found = failure(error)
    assert words in text
    assert "\n" not in text
    assert found == code


def test_torch_runs_out_of_memory_as_it_is_told_here() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert failure(error.value)[1] == 2


@pytest.mark.parametrize(("processes", "words"), [(2, "another process"), (1, "a mistake in spp")])
def test_a_broken_connection_is_blamed_on_another_process_only_if_there_is_one(
    processes: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "0")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    error = RuntimeError("gloo/transport/tcp/pair.cc:537 Read error: Connection reset by peer")
    assert words in failure(error)[0]
