"""What is known of the inputs in a dense model, kept on disk: for any method and any ratio."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spp_cli import processes
from spp_cli.errors import ConfigError
from spp_cli.models.decoder import Linear
from spp_cli.models.tensor_file import (
    TensorFile,
    bytes_of,
    layout_of,
    whole_file,
    write_tensors,
)
from spp_cli.pruning.inputs import Known
from spp_cli.pruning.method import PruningMethod
from spp_cli.pruning.orders import Group, Round
from spp_cli.pruning.statistics import Gram, Moments, PairedGram, Statistic
from spp_cli.reading import parse_json

__all__ = ["KEPT", "SavedStatistics", "check_kept"]

KEPT: tuple[type[Statistic], ...] = (Gram, Moments)  # between them they do for every method
# What each becomes when it is read. Inputs of a dense model are those that the dense block gives.
_READ_AS: dict[str, type[Statistic]] = {"Gram": PairedGram, "Moments": Moments}


class SavedStatistics:
    """A folder with one safetensors file a block, whole or not there.

    A file has the tensors of ``KEPT`` for each input, and in its metadata which linears read it, of
    how many samples and tokens it was counted, and a digest of all that. Linears that no text
    reached are in none.
    """

    def __init__(self, folder: Path, blocks: int) -> None:
        self.folder = folder
        self._blocks = blocks

    def missing(self) -> list[int]:
        """Return the blocks of which there is no file, or none that is as it was written."""
        return [block for block in range(self._blocks) if not self._is_intact(block)]

    def damaged(self, missing: Iterable[int]) -> list[Path]:
        """Return the files that are there of what is ``missing``."""
        return [path for block in missing if (path := self._path(block)).exists()]

    def write(self, block: int, groups: Round) -> None:
        """Keep what is known of each input of a block: statistics of all kinds that are ``KEPT``.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        inputs: list[dict[str, Any]] = []
        for linears, known in groups:
            if known is None:
                continue
            samples = {}
            for kind in KEPT:
                statistic = known[kind]
                samples[kind.__name__] = statistic.samples
                for name, tensor in statistic.tensors().items():
                    tensors[f"{len(inputs)}.{kind.__name__}.{name}"] = tensor.cpu()
            names = [linear.name for linear in linears]
            inputs.append({"linears": names, "tokens": known.tokens, "samples": samples})
        layouts = {name: layout_of(tensor) for name, tensor in tensors.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        described = json.dumps(inputs)
        digest = _digest(block, described, tensors, tensors.__getitem__)
        metadata = {"inputs": described, "sha256": digest}
        write_tensors(self._path(block), layouts, tensors.__getitem__, metadata)

    def read(
        self,
        block: int,
        linears: Sequence[Linear],
        kinds: Sequence[type[Statistic]],
        device: torch.device,
    ) -> Iterator[Group]:
        """Yield ``linears`` of a block by input, each with statistics that do for ``kinds``.

        One input at a time is in memory. Linears that no text reached come last, with None.
        """
        file = TensorFile(self._path(block))
        chosen = {linear.name: linear for linear in linears}
        for number, described in enumerate(parse_json(file.metadata["inputs"])):
            names = [name for name in described["linears"] if name in chosen]
            if not names:
                continue
            group = [chosen.pop(name) for name in names]
            read = {}
            for name, samples in described["samples"].items():
                kind = _READ_AS[name]
                if any(issubclass(kind, wanted) for wanted in kinds):
                    read[kind] = kind(group[0].in_features, device)
                    read[kind].restore(_tensors(file, f"{number}.{name}.", device), samples)
            yield group, Known(read, described["tokens"])
        yield from (([linear], None) for linear in chosen.values())

    def rounds(
        self,
        block: int,
        linears: Sequence[Linear],
        kinds: Sequence[type[Statistic]],
        device: torch.device,
    ) -> Iterator[Round]:
        """Yield what ``read`` does: as many groups at once as there are processes to prune them."""
        waiting: Round = []
        for group in self.read(block, linears, kinds, device):
            waiting.append(group)
            if len(waiting) == processes.count():
                yield waiting
                waiting = []
        yield waiting

    def _is_intact(self, block: int) -> bool:
        file = whole_file(self._path(block))
        if file is None or not file.metadata.keys() >= {"inputs", "sha256"}:
            return False
        found = _digest(block, file.metadata["inputs"], file.names(), file.read)
        return found == file.metadata["sha256"]

    def _path(self, block: int) -> Path:
        return self.folder / f"block-{block:05d}.safetensors"


def _digest(block: int, described: str, names: Iterable[str], read: Callable[[str], Tensor]) -> str:
    """Return the digest of what a file says of a block; one tensor at a time is in memory."""
    digest = hashlib.sha256(f"{block} {described}".encode())
    for name in sorted(names):
        tensor = read(name).contiguous()
        digest.update(f"{name} {layout_of(tensor)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def check_kept(order: str, method: PruningMethod, kinds: Sequence[type[Statistic]]) -> None:
    """Refuse ``order`` dense where something is asked for that is not ``KEPT``.

    Raises:
        ConfigError: with what is asked for.
    """
    if order != "dense":
        return
    read = _READ_AS.values()
    lacking = [kind.__name__ for kind in kinds if not any(issubclass(r, kind) for r in read)]
    if method.sees_blocks:
        lacking.append(f"{method.name}, which looks at whole blocks,")
    for name in lacking:
        raise ConfigError(
            f"prune.order is 'dense', which keeps Gram matrices and moments of inputs, and {name} "
            "asks for more. Set --order two-pass"
        )


def _tensors(file: TensorFile, prefix: str, device: torch.device) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): file.read(name).to(device)
        for name in file.names()
        if name.startswith(prefix)
    }
