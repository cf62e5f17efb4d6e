"""A row of the table of mistakes, and the ways in which its folder is spoilt beforehand.

Every command is typed in a folder that holds ``base`` (a tiny dense model), ``text.txt``,
``rows.jsonl``, ``small.yaml`` (all of them put together) and ``workspace`` with the finished run
``base-wanda-0.5`` and the pruned one ``base-wanda-0.6``.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

RUN = "workspace/base-wanda-0.5"
Spoil = Callable[[], object]


@dataclass(frozen=True)
class Mistake:
    """What is typed, and the whole line that answers; "…" in it stands for anything.

    ``spoil`` is done beforehand, in the folder where the command is typed. A line for each mistake,
    if there are several.
    """

    name: str
    command: str
    says: str
    spoil: tuple[Spoil, ...] = ()
    code: int = 2


def written(path: str, content: str | bytes) -> Spoil:
    """Put a file there, folders included."""

    def spoil() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def added(path: str, line: str) -> Spoil:
    """Put one more line at the end of a text."""
    return lambda: Path(path).write_text(f"{Path(path).read_text()}{line}\n")


def removed(path: str) -> Spoil:
    """Remove a file or a folder."""
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def copied(source: str, target: str) -> Spoil:
    """Copy a file or a folder over what is there."""

    def spoil() -> None:
        if Path(source).is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)

    return spoil


def moved(source: str, target: str) -> Spoil:
    """Move a file or a folder, over what is there."""

    def spoil() -> None:
        if Path(target).is_dir():
            shutil.rmtree(target)
        shutil.move(source, target)

    return spoil


def truncated(path: str) -> Spoil:
    """Cut a file in half, as a copy that broke off."""
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[: Path(path).stat().st_size // 2])


def garbled(path: str) -> Spoil:
    """Overwrite the first bytes of a file, which keeps its size."""
    return lambda: Path(path).write_bytes(b"\xff" * 64 + Path(path).read_bytes()[64:])


def edited(path: str, **changes: Any) -> Spoil:
    """Change keys of a JSON object; None removes a key."""

    def spoil() -> None:
        values = {**json.loads(Path(path).read_bytes()), **changes}
        kept = {key: value for key, value in values.items() if value is not None}
        Path(path).write_text(json.dumps(kept))

    return spoil


def reworded(path: str, pattern: str, end: str) -> Spoil:
    """Replace the end of what matches ``pattern`` by as many other letters."""

    def spoil() -> None:
        text = Path(path).read_text()
        found = re.search(pattern, text)
        assert found
        Path(path).write_text(text.replace(found[0], found[0][: -len(end)] + end))

    return spoil


def tensor_changed(path: str, name: str, change: Callable[[torch.Tensor], object]) -> Spoil:
    """Change a tensor of a safetensors file: in place, or to what ``change`` returns."""

    def spoil() -> None:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        changed = change(tensors[name])
        if isinstance(changed, torch.Tensor):
            tensors[name] = changed.contiguous()
        save_file(tensors, path, metadata=metadata)

    return spoil


def filled(weight: torch.Tensor) -> None:
    """Fill the first pruned weight, in place."""
    row, column = weight.eq(0).nonzero()[0].tolist()
    weight[row, column] = 1.0


def flipped(path: str) -> Spoil:
    """Flip the bits of the last byte, as a disk may; the header stays."""

    def spoil() -> None:
        content = bytearray(Path(path).read_bytes())
        content[-1] ^= 0xFF
        Path(path).write_bytes(content)

    return spoil
