"""Write a checkpoint anew with some tensors replaced, one decoder block at a time, resumably."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spp_cli.atomic_files import UnfinishedFile
from spp_cli.models.checkpoint import INDEX, SINGLE
from spp_cli.models.decoder import Decoder
from spp_cli.models.experts import Part
from spp_cli.models.rounding import refuse_unstorable
from spp_cli.models.stored import StoredTensors
from spp_cli.models.tensor_file import (
    Layout,
    TensorFile,
    begin_tensors,
    whole_file,
    write_tensors,
)
from spp_cli.progress import Reporter

__all__ = ["CheckpointRewriter"]

_JOIN_BELOW = 1 << 27  # bytes; a smaller model becomes one file, which means to write it twice
_METADATA = {"format": "pt"}


class CheckpointRewriter:
    """Writes one shard a block, and one for all that is in no block; a written shard is whole.

    Tensors that are not replaced stay as they are bit for bit, unless ``dtype`` says to cast the
    floating-point ones; ``dtype_key`` is the setting that said so. Each tensor of the model is
    checked as it will be stored. Nothing is held between two shards.
    """

    def __init__(
        self,
        stored: StoredTensors,
        target: Path,
        decoder: Decoder,
        dtype: torch.dtype | None = None,
        dtype_key: str = "model.dtype",
    ) -> None:
        self._stored = stored
        self._source = stored.checkpoint
        self._target = target
        self._dtype, self._dtype_key = dtype, dtype_key
        blocks = len(decoder.blocks)
        prefix = decoder.model.base_model_prefix
        inner = decoder.path.removeprefix(f"{prefix}.")
        # The names with which what is no tensor of the model may begin.
        starts = (decoder.path, inner, f"{prefix}.{inner}")
        self._names: list[list[str]] = [[] for _ in range(blocks + 1)]
        self._shard_of: dict[str, int] = {}
        for name in self._source.locations:
            shard = _block_of(stored.model_name(name), starts, blocks)
            self._shard_of[name] = shard
            self._names[shard].append(name)

    def is_written(self, shard: int) -> bool:
        """Whether this or an interrupted writer before finished a shard, and it is whole still."""
        return whole_file(self._path(shard)) is not None

    def forget(self, first: int) -> None:
        """Delete the shards from ``first`` on, so that ``read`` returns what the source has."""
        for shard in range(first, len(self._names)):
            self._path(shard).unlink(missing_ok=True)

    def begin(self, shard: int, replaced: Mapping[str, Tensor]) -> UnfinishedFile:
        """Write the tensors of one block, with ``replaced`` in their place, to be finished.

        ``replaced`` has the names and the layout of the model's tensors; each may be a stored
        tensor or a part of one.

        Raises:
            ModelError: a tensor is NaN or infinite, or becomes so by the cast.
        """
        layouts = {name: self._layout(name) for name in self._names[shard]}
        parts: dict[str, list[tuple[Part, Tensor]]] = {}
        for name, tensor in replaced.items():
            part = self._stored.part(name)
            parts.setdefault(part.name, []).append((part, tensor))

        def read(name: str) -> Tensor:
            changes = parts.get(name, [])
            is_whole = bool(changes) and changes[0][0].is_whole
            exact = changes[0][1] if is_whole else self._source.tensor(name)
            stored = exact.to(layouts[name][1])
            for part, tensor in [] if is_whole else changes:
                part.of(stored).copy_(tensor)
            self._check(name, exact, stored)
            return stored

        return begin_tensors(self._path(shard), layouts, read, _METADATA)

    def check_source(self, reporter: Reporter) -> None:
        """Read every tensor of the source once, and look at it as it will be stored.

        Raises:
            ModelError: one is NaN or infinite, or becomes so by the cast.
        """
        names = list(self._source.locations)
        with reporter.task("check of the weights", len(names), "tensors") as progress:
            for name in names:
                exact = self._source.tensor(name)
                self._check(name, exact, exact.to(self._layout(name)[1]))
                progress.advance(1, name)

    def _check(self, name: str, exact: Tensor, stored: Tensor) -> None:
        if self._stored.is_of_the_model(name):  # a mask of −inf may lie next to them
            refuse_unstorable(f"{self._source.folder}: {name}", exact, stored, self._dtype_key)

    def read(self, name: str, index: int | None = None) -> Tensor:
        """Return a stored tensor: as written if its shard is, else as in the source.

        With ``index``: only what is there on its first axis.
        """
        path = self._path(self._shard_of[name])
        source = TensorFile(path).read if path.exists() else self._source.tensor
        return source(name, index)

    def finish(self) -> list[str]:
        """Write what is in no block, then the index; return the names of the files.

        A small model becomes one file.
        """
        self.begin(len(self._names) - 1, {}).finish()
        files = [TensorFile(self._path(shard)) for shard in range(len(self._names))]
        homes = {name: file for file in files for name in file.names()}
        size = sum(file.path.stat().st_size for file in files)
        if size < _JOIN_BELOW:
            layouts = {name: homes[name].layout(name) for name in self._source.locations}
            write_tensors(
                self._target / SINGLE, layouts, lambda name: homes[name].read(name), _METADATA
            )
            for file in files:
                file.path.unlink()
            return [SINGLE]
        index: dict[str, Any] = {
            "metadata": {"total_size": size},
            "weight_map": {name: file.path.name for name, file in homes.items()},
        }
        (self._target / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        return [INDEX, *(file.path.name for file in files)]

    def _layout(self, name: str) -> Layout:
        """Return shape and type of a tensor as it will be written."""
        stored = self._source.dtype(name)
        if not self._stored.is_of_the_model(name):
            return self._source.shape(name), stored
        return self._source.shape(name), self._stored.type_of_stored(name, self._dtype)

    def _path(self, shard: int) -> Path:
        return self._target / f"model-{shard + 1:05d}-of-{len(self._names):05d}.safetensors"


def _block_of(name: str, starts: Iterable[str], blocks: int) -> int:
    """Return the index of the block that a stored tensor belongs to; ``blocks`` if to none."""
    for start in starts:
        number = name.removeprefix(f"{start}.").split(".", 1)[0]
        # Some checkpoints carry more blocks than the model has; those go on as they are.
        if name.startswith(f"{start}.") and number.isdigit() and int(number) < blocks:
            return int(number)
    return blocks
