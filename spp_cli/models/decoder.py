"""What spp knows of model families: where the decoder blocks are, and the linears in them.

No family is named. The blocks are the ModuleList of the text decoder that holds the most weights in
linear layers; a family for which this rule fails gets an entry in ``BLOCKS``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spp_cli.errors import ConfigError, ModelError
from spp_cli.models.experts import routers

__all__ = ["BLOCKS", "Decoder", "Linear", "select"]

# model_type in config.json → path of the ModuleList of its decoder blocks
BLOCKS: dict[str, str] = {}


@dataclass(frozen=True)
class Linear:
    """One prunable layer: its weight always appears as (out_features, in_features)."""

    name: str  # the path in the model, e.g. model.layers.0.self_attn.q_proj
    module: nn.Module

    @property
    def transposed(self) -> bool:
        """Whether the module, and so the checkpoint, stores (in_features, out_features)."""
        return isinstance(self.module, Conv1D)

    @property
    def parameter(self) -> nn.Parameter:
        """The weight as the module stores it."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def weight(self) -> Tensor:
        """A view of the weight: (out_features, in_features)."""
        return self.as_stored(self.parameter.data)

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def is_routed(self) -> bool:
        """Whether it is an expert's: it is given some of the tokens, in an order of their own."""
        return ".experts." in self.name

    @property
    def bias(self) -> Tensor | None:
        bias = self.module.bias
        assert bias is None or isinstance(bias, Tensor)
        return None if bias is None else bias.data

    def replace(self, model: nn.Module, module: nn.Module) -> None:
        """Put another module in the place that this one has in ``model``."""
        parent, _, child = self.name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)

    def as_stored(self, weight: Tensor) -> Tensor:
        """Turn a tensor from (out_features, in_features) to the layout stored, or back."""
        return weight.T if self.transposed else weight


class Decoder:
    """The decoder blocks of a model, in order, and the linears of each.

    Raises:
        ModelError: no blocks with linear layers are found.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.path = BLOCKS.get(model.config.model_type) or _find_blocks(model)
        blocks = model.get_submodule(self.path)
        assert isinstance(blocks, nn.ModuleList)
        self.blocks: list[nn.Module] = list(blocks)

    def linears(self, index: int) -> list[Linear]:
        """Return the linear layers of one block, in the order of their definition.

        What chooses among experts is none of them: it is small, and decides where tokens go.
        """
        return _linears(self.blocks[index], f"{self.path}.{index}")

    def all_linears(self) -> list[Linear]:
        """Return the linear layers of all blocks."""
        return [linear for index in range(len(self.blocks)) for linear in self.linears(index)]

    def by_block(self, linears: Iterable[Linear]) -> list[list[Linear]]:
        """Return those of ``linears`` that each block has, in the order of their definition."""
        wanted = {linear.name for linear in linears}
        return [
            [linear for linear in self.linears(index) if linear.name in wanted]
            for index in range(len(self.blocks))
        ]

    def outside_linears(self) -> dict[str, int]:
        """Return the matrices of all blocks that are in no linear layer, and their sizes.

        Such are routers, convolutions, and experts that are no modules known to ``take_apart``.
        """
        seen = {id(linear.parameter) for linear in self.all_linears()}
        found = {}
        for index, block in enumerate(self.blocks):
            for name, parameter in block.named_parameters():
                if parameter.dim() > 1 and id(parameter) not in seen:
                    seen.add(id(parameter))  # blocks may share it
                    found[f"{self.path}.{index}.{name}"] = parameter.numel()
        return found

    def block_weights(self) -> int:
        """Return how many parameters all blocks have, of whatever kind; shared ones count once."""
        every = {id(p): p.numel() for block in self.blocks for p in block.parameters()}
        return sum(every.values())

    def place_shell(self, device: torch.device) -> None:
        """Move everything but the blocks to ``device``: embeddings, norms, rotary tables, head."""
        inside = {id(tensor) for block in self.blocks for tensor in _tensors(block)}
        for module in self.model.modules():
            for tensor in _tensors(module, recurse=False):
                if id(tensor) not in inside:
                    tensor.data = tensor.data.to(device)


def _tensors(module: nn.Module, recurse: bool = True) -> list[Tensor]:
    return [*module.parameters(recurse=recurse), *module.buffers(recurse=recurse)]


def _linears(module: nn.Module, name: str) -> list[Linear]:
    routing = {id(router) for router in routers(module)}
    return [
        Linear(f"{name}.{path}", child)
        for path, child in module.named_modules()
        if isinstance(child, nn.Linear | Conv1D) and id(child) not in routing
    ]


def _find_blocks(model: PreTrainedModel) -> str:
    sizes = {
        path: sum(linear.parameter.numel() for linear in _linears(module, path))
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not _beside_the_text(path)
    }
    # Of nested lists that hold as much the outermost is taken: it comes first.
    path = max(sizes, key=sizes.__getitem__, default="")
    if not sizes.get(path):
        raise ModelError(
            f"no decoder blocks with linear layers found in a {model.config.model_type} model"
        )
    return path


def _beside_the_text(path: str) -> bool:
    """Whether a module belongs to another modality of a model that also reads images or sound."""
    return any(part in name for name in path.split(".") for part in ("vision", "visual", "audio"))


def select(
    linears: Sequence[Linear],
    include: Sequence[str],
    exclude: Sequence[str],
    keys: tuple[str, str] = ("prune.include", "prune.exclude"),
) -> list[Linear]:
    """Return the linears whose name matches a glob of ``include`` and none of ``exclude``.

    A glob matches the whole name, or its end after a dot: "*.mlp.*", "q_proj", "layers.0.*".

    Raises:
        ConfigError: a glob matches nothing, or nothing is left; ``keys`` are where the globs stand.
    """
    for key, globs in zip(keys, (include, exclude), strict=True):
        for glob in globs:
            if not any(_matches(linear.name, glob) for linear in linears):
                names = ", ".join(
                    dict.fromkeys(linear.name.rsplit(".", 1)[-1] for linear in linears)
                )
                raise ConfigError(
                    f"{key} has {glob!r}, which matches no linear layer. There are: {names}"
                )
    chosen = [
        linear
        for linear in linears
        if any(_matches(linear.name, glob) for glob in include)
        and not any(_matches(linear.name, glob) for glob in exclude)
    ]
    if not chosen:
        raise ConfigError(
            f"{keys[1]} matches every linear layer that {keys[0]} does, so that none is left. "
            f"Shorten {keys[1]}"
        )
    return chosen


def _matches(name: str, glob: str) -> bool:
    return fnmatchcase(name, glob) or fnmatchcase(name, f"*.{glob}")
