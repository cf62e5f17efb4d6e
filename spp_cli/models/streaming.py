"""A model of which only one decoder block is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spp_cli.errors import ModelError
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.decoder import Decoder
from spp_cli.models.heap import return_free_memory
from spp_cli.models.loading import empty_model, load_model
from spp_cli.models.stored import Read, StoredTensors

__all__ = ["BlockSource", "ResidentModel", "StreamedModel", "open_model", "stored_tensors"]


class BlockSource:
    """A model whose blocks are brought to the device and taken from it again."""

    model: PreTrainedModel
    decoder: Decoder

    def place_shell(self, device: torch.device) -> None:
        """Bring all that is not in a block, and that a forward without the head needs."""
        raise NotImplementedError

    def place_head(self, device: torch.device) -> None:
        """Bring what comes after the shell and the blocks: the head. The shell is in place."""
        raise NotImplementedError

    def free_head(self) -> None:
        """Give back the memory of the head, but for what the shell has of it."""
        raise NotImplementedError

    def load(self, index: int, device: torch.device) -> nn.Module:
        """Return one block, its weights on ``device``."""
        raise NotImplementedError

    def free(self, index: int) -> None:
        """Give back the memory of one block."""
        raise NotImplementedError


class ResidentModel(BlockSource):
    """A model that is whole in CPU memory, for those that cannot be read tensor by tensor."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.decoder = Decoder(model)

    def place_shell(self, device: torch.device) -> None:
        self.decoder.place_shell(device)

    def place_head(self, device: torch.device) -> None:
        pass  # it came with the shell

    def free_head(self) -> None:
        pass  # it stays with the shell

    def load(self, index: int, device: torch.device) -> nn.Module:
        return self.decoder.blocks[index].to(device)

    def free(self, index: int) -> None:
        self.decoder.blocks[index].to("cpu")


class StreamedModel(BlockSource):
    """A model built without weights; those of a block are read when its turn comes.

    ``dtype``: type of the floating-point weights; None: that of config.json.

    What it computes is what the model of ``from_pretrained`` computes, however it is stored.

    Raises:
        ModelError: the checkpoint lacks a tensor that the model has, or has it in another shape.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype | None,
        trust_remote_code: bool,
    ) -> None:
        self.model = empty_model(checkpoint, trust_remote_code=trust_remote_code)
        self.decoder = Decoder(self.model)
        configured = getattr(self.model.config.get_text_config(), "dtype", None)
        self._dtype = dtype or configured or checkpoint.main_dtype()
        self.stored = StoredTensors(checkpoint, self.model)
        self._read: Read = checkpoint.tensor
        self._untie()
        self._check()

    def _untie(self) -> None:
        """Give what is stored with values of its own a parameter of its own."""
        for name in self.stored.untied:
            path, _, own = name.rpartition(".")
            module = self.model.get_submodule(path)
            module._parameters[own] = _without_memory(module._parameters[own])
            del self.model.all_tied_weights_keys[name]

    def _check(self) -> None:
        """Look for every tensor that the model reads, the head included."""
        for path, module in self.model.named_modules():
            for name, tensor in _stored(module):
                full = _join(path, name)
                if self.stored.shape(full) != tuple(tensor.shape):
                    raise ModelError(
                        f"{self.stored.checkpoint.folder}: {full} is {self.stored.shape(full)}, "
                        f"and config.json makes it {tuple(tensor.shape)}. Copy the model anew"
                    )

    def read_from(self, read: Read) -> None:
        """Read from now on what ``read`` returns for a stored name, such as a pruned weight."""
        self._read = read

    def place_shell(self, device: torch.device) -> None:
        inside = {id(module) for block in self.decoder.blocks for module in block.modules()}
        for path, module in self.model.base_model.named_modules():
            if id(module) not in inside:
                self._fill(module, _join(self._base_path(), path), device)

    def place_head(self, device: torch.device) -> None:
        self.model.tie_weights(recompute_mapping=False)  # a tied head is the embedding
        base = {id(module) for module in self.model.base_model.modules()}
        for path, module in self.model.named_modules():
            if id(module) not in base:
                self._fill(module, path, device)

    def free_head(self) -> None:
        base = {id(parameter) for parameter in self.model.base_model.parameters()}
        for module in self.model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) not in base:
                    module._parameters[name] = _without_memory(parameter)

    def load(self, index: int, device: torch.device) -> nn.Module:
        block = self.decoder.blocks[index]
        for path, module in block.named_modules():
            self._fill(module, _join(f"{self.decoder.path}.{index}", path), device)
        return block

    def free(self, index: int) -> None:
        for module in self.decoder.blocks[index].modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                module._parameters[name] = _without_memory(parameter)
        return_free_memory()

    def _base_path(self) -> str:
        same = self.model.base_model is self.model
        return "" if same else self.model.base_model_prefix

    def _fill(self, module: nn.Module, path: str, device: torch.device) -> None:
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
        for name, tensor in list(_stored(module)):
            if isinstance(tensor, nn.Parameter) and not tensor.is_meta:
                continue  # in place already, or tied to what is
            full = _join(path, name)
            value = self.stored.read(full, self._read)
            if value.is_floating_point() and (dtype := self._dtype_of(full)) is not None:
                value = value.to(dtype)
            if isinstance(tensor, nn.Parameter):
                module._parameters[name] = _parameter(value.to(device))
            else:
                module._buffers[name] = value.to(device)

    def _dtype_of(self, name: str) -> torch.dtype | None:
        """Return the type of a tensor: some, such as a router's bias, are always in float32."""
        kept = getattr(self.model, "_keep_in_fp32_modules_strict", None) or ()
        return torch.float32 if any(part in name for part in kept) else self._dtype


def open_model(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
) -> BlockSource:
    """Return the model block by block where it is known what is stored of each of its tensors.

    Where transformers mixes tensors in another way than joining experts, it is loaded whole.
    """
    try:
        return StreamedModel(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code)
    except ModelError:
        # A checkpoint that is really incomplete fails here too, with the better message.
        model = load_model(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code)
        return ResidentModel(model)


def stored_tensors(source: BlockSource, checkpoint: Checkpoint) -> StoredTensors:
    """Return where ``checkpoint``, that ``source`` reads, holds each tensor of the model."""
    # To map those of a large mixture takes seconds, and the streamed model did it already.
    if isinstance(source, StreamedModel):
        return source.stored
    return StoredTensors(checkpoint, source.model)


def _stored(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a checkpoint holds of one module itself: parameters and persistent buffers."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def _parameter(value: Any) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def _without_memory(parameter: nn.Parameter) -> nn.Parameter:
    return _parameter(torch.empty_like(parameter, device="meta"))


def _join(path: str, name: str) -> str:
    return ".".join(part for part in (path, name) if part)
