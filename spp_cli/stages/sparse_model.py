"""The pruned model of a run with its adapter: what finetune trains, merge writes, eval measures."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from spp_cli.adapters.adapter import AdapterMethod
from spp_cli.adapters.attach import attach, load_adapter, read_adapter_config
from spp_cli.errors import ModelError
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.decoder import Decoder, Linear, select
from spp_cli.models.heap import return_free_memory
from spp_cli.models.stored import StoredTensors
from spp_cli.models.streaming import BlockSource, open_model, stored_tensors
from spp_cli.sparsity.masks import KeepMasks

__all__ = ["SparseModel", "adapted_model", "pruned_model"]


@dataclass(frozen=True)
class SparseModel:
    """A pruned model, where it comes from, and its masked linears by name.

    Its weights are not in memory before ``load``.
    """

    source: BlockSource
    stored: StoredTensors
    masks: KeepMasks
    linears: dict[str, Linear]

    @property
    def model(self) -> PreTrainedModel:
        return self.source.model

    @property
    def decoder(self) -> Decoder:
        return self.source.decoder

    def choose(self, include: tuple[str, ...], exclude: tuple[str, ...]) -> list[str]:
        """Return the names of the masked linears that get an adapter."""
        keys = ("finetune.target_modules", "finetune.exclude_modules")
        chosen = select(list(self.linears.values()), include, exclude, keys)
        return [linear.name for linear in chosen]

    def load(
        self,
        device: torch.device,
        method: AdapterMethod | None = None,
        names: Collection[str] = (),
        *,
        packed: bool = False,
    ) -> PreTrainedModel:
        """Bring the weights to ``device``, and adapters of ``method`` onto the linears ``names``.

        Nothing but the adapters is left to train.
        With ``packed`` no more than one block is there with the zeros of those linears.

        Raises:
            ModelError: weights missing or corrupt, or a pruned weight that is not zero.
        """
        self.model.requires_grad_(False)
        of_block = self.decoder.by_block(list(self.linears.values()))
        for index, linears in enumerate(of_block):
            self.source.load(index, device)
            for linear in linears:
                self._check(linear)
            if method is not None:
                adapted = [linear for linear in linears if linear.name in names]
                attach(self.model, adapted, method, self.masks, packed=packed)
            if packed:
                return_free_memory()  # what the zeros took
        self.source.place_shell(device)
        self.source.place_head(device)
        return self.model.eval()

    def _check(self, linear: Linear) -> None:
        keep = self.masks[linear.name].to(linear.weight.device)
        if filled := int(linear.weight.masked_fill(keep, 0).count_nonzero()):
            raise ModelError(
                f"{self.masks.path.parent}: {filled} pruned weights of {linear.name} are not zero. "
                "The folder was changed after pruning; prune again: spp prune --force"
            )


def pruned_model(
    folder: Path, *, dtype: torch.dtype | None, trust_remote_code: bool
) -> SparseModel:
    """Open the folder of ``spp prune`` or ``spp merge``.

    Raises:
        ModelError: masks missing or corrupt, or of another model.
    """
    checkpoint = Checkpoint(folder)
    masks = KeepMasks(folder)
    if not masks.is_intact():
        raise ModelError(
            f"{masks.path} was changed after pruning: its digest is not the one recorded. "
            "Prune again: spp prune --force"
        )
    source = open_model(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code)
    every = source.decoder.all_linears()
    linears = {linear.name: linear for linear in every if linear.name in masks}
    if len(linears) != len(masks):
        missing = next(name for name in masks if name not in linears)
        raise ModelError(f"{masks.path} has a mask for {missing}, which the model has not")
    return SparseModel(source, stored_tensors(source, checkpoint), masks, linears)


def adapted_model(
    prune: Path,
    finetune: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
) -> SparseModel:
    """Load the pruned model of a run with the adapter that was trained on it.

    Raises:
        ModelError: the adapter was trained on another base.
    """
    sparse = pruned_model(prune, dtype=dtype, trust_remote_code=trust_remote_code)
    method, description = read_adapter_config(finetune)
    if description.get("mask_digest") != sparse.masks.digest:
        raise ModelError(
            f"the adapter in {finetune} was trained on another base than {prune}: "
            "their masks differ. Finetune again: spp finetune --force"
        )
    unknown = [name for name in description["layers"] if name not in sparse.linears]
    if unknown:
        raise ModelError(f"the adapter in {finetune} has {unknown[0]}, which its base has not")
    sparse.load(device, method, description["layers"])
    load_adapter(sparse.model, finetune)
    return sparse


def float32_logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits (sequences, tokens, vocabulary) on the CPU, one sequence at a time."""
    with torch.no_grad():
        return torch.cat([model(row[None]).logits.float().cpu() for row in tokens])
