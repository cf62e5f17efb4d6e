"""What a pruning in progress has finished: one file a block, written last, in the resume folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spp_cli.atomic_files import UnfinishedFile
from spp_cli.models.tensor_file import (
    TensorFile,
    begin_tensors,
    layout_of,
    whole_file,
)
from spp_cli.pruning.engine import PrunedLayer
from spp_cli.reading import parse_json
from spp_cli.sparsity.masks import LazyMapping, pack

__all__ = ["BlockRecords"]


class BlockRecords:
    """The masks and figures of the blocks that are done, on disk; a kill loses none of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, block: int, layers: list[PrunedLayer]) -> UnfinishedFile:
        """Record one block. Finished, this file says that it is done: its weights come before."""
        packed = {layer.linear.name: pack(layer.keep) for layer in layers}
        described: dict[str, dict[str, Any]] = {
            layer.linear.name: {
                "shape": list(layer.keep.shape),
                "figures": {"sparsity": layer.sparsity, **layer.record},
            }
            for layer in layers
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        metadata = {"layers": json.dumps(described)}
        layouts = {name: layout_of(bits) for name, bits in packed.items()}
        return begin_tensors(self._path(block), layouts, packed.__getitem__, metadata)

    def is_done(self, block: int) -> bool:
        """Whether a block was recorded, and the record is whole."""
        return whole_file(self._path(block)) is not None

    def collect(
        self, blocks: int
    ) -> tuple[LazyMapping, dict[str, tuple[int, ...]], dict[str, dict[str, Any]]]:
        """Return packed masks, their shapes and the figures of all layers, by name, in order."""
        homes: dict[str, TensorFile] = {}
        layers: dict[str, dict[str, Any]] = {}
        for block in range(blocks):
            file = TensorFile(self._path(block))
            described = parse_json(file.metadata["layers"])
            homes |= dict.fromkeys(described, file)
            layers |= described
        shapes = {name: tuple(layer["shape"]) for name, layer in layers.items()}
        figures = {name: layer["figures"] for name, layer in layers.items()}
        return LazyMapping(layers, lambda name: homes[name].read(name)), shapes, figures

    def _path(self, block: int) -> Path:
        return self._folder / f"block-{block:05d}.safetensors"
