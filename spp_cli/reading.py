"""Files that others wrote, read within limits: nothing in one may end or hold up a command.

Whatever is wrong with one is a ValueError of a few words, or an OSError, for the caller to say of
which file, and what to do about it.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["LARGEST", "Pairs", "check_regular", "parse_json", "read_bytes", "read_json"]

Pairs = Callable[[list[tuple[str, Any]]], Any]
LARGEST = 100_000_000  # bytes; the library reads no longer header of safetensors either
_DEEPEST = 100  # levels; the deepest of what models come with has about ten
# What a shell puts in the place of <(command): a pipe with somebody at its other end.
_OPEN_ALREADY = ("/dev/", "/proc/")


def check_regular(path: Path) -> None:
    """Refuse a pipe, a socket or a device, which may be waited for without end.

    Raises:
        OSError: it is one, or nothing is there.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # opening a folder says what is wrong
        return
    if stat.S_ISFIFO(mode) and str(path).startswith(_OPEN_ALREADY):
        return
    raise OSError("neither a file nor a folder, but a pipe, a socket or a device")


def read_bytes(path: Path, limit: int = LARGEST) -> bytes:
    """Return what a file holds.

    Raises:
        OSError: it cannot be read, or is no file.
        ValueError: it is larger than ``limit`` bytes.
    """
    check_regular(path)
    with path.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"larger than {limit:,} bytes")
    return data


def read_json(path: Path) -> Any:
    """Return the JSON in a file.

    Raises:
        OSError: it cannot be read, or is no file.
        ValueError: it is not JSON, or larger or nested deeper than any file of a model or a run.
    """
    return parse_json(read_bytes(path))


def parse_json(data: bytes | str, pairs: Pairs | None = None) -> Any:
    """Return what JSON says; ``pairs`` makes a value of each object, as in ``json.loads``.

    Raises:
        ValueError: it is not JSON, or is nested too deep, or has a number of too many digits.
    """
    try:
        value = json.loads(data, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if "integer string" in str(error):
            raise ValueError("a number of too many digits") from None
        raise
    brackets = ("[", "{") if isinstance(data, str) else (b"[", b"{")
    if sum(map(data.count, brackets)) > _DEEPEST and _is_deep(value):  # type: ignore[arg-type]
        raise ValueError("nested too deep")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += [it for it in each.values() if isinstance(it, dict | list)]
            elif isinstance(each, list):
                inner += [it for it in each if isinstance(it, dict | list)]
        if not inner:
            return False
        level = inner
    return True
