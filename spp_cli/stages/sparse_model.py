"""The pruned model of a run with its adapter: what finetune trains, merge writes, eval measures."""

from __future__ import annotations

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
from spp_cli.models.loading import load_model
from spp_cli.models.stored import StoredTensors
from spp_cli.sparsity.masks import KeepMasks

__all__ = ["SparseModel", "adapted_model", "pruned_model"]


@dataclass(frozen=True)
class SparseModel:
    """A pruned model in memory, where it came from, and its masked linears by name."""

    model: PreTrainedModel
    stored: StoredTensors
    masks: KeepMasks
    decoder: Decoder
    linears: dict[str, Linear]

    def attach(
        self, method: AdapterMethod, include: tuple[str, ...], exclude: tuple[str, ...]
    ) -> list[str]:
        """Put new adapters on the chosen masked linears; return the linears' names."""
        keys = ("finetune.target_modules", "finetune.exclude_modules")
        chosen = select(list(self.linears.values()), include, exclude, keys)
        attach(self.model, chosen, method)
        return [linear.name for linear in chosen]


def pruned_model(
    folder: Path, *, dtype: torch.dtype | None, trust_remote_code: bool
) -> SparseModel:
    """Load the folder of ``spp prune`` or ``spp merge``, on the CPU.

    Raises:
        ModelError: masks or weights missing, corrupt, or a pruned weight that is not zero.
    """
    checkpoint = Checkpoint(folder)
    masks = KeepMasks(folder)
    if not masks.is_intact():
        raise ModelError(
            f"{masks.path} was changed after pruning: its digest is not the one recorded. "
            "Prune again: spp prune --force"
        )
    model = load_model(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code)
    decoder = Decoder(model)
    linears = {linear.name: linear for linear in decoder.all_linears() if linear.name in masks}
    if len(linears) != len(masks):
        missing = next(name for name in masks if name not in linears)
        raise ModelError(f"{masks.path} has a mask for {missing}, which the model has not")
    for name, linear in linears.items():
        filled = linear.weight.masked_fill(masks[name], 0).count_nonzero().item()
        if filled:
            raise ModelError(
                f"{folder}: {filled} pruned weights of {name} are not zero. "
                "The folder was changed after pruning; prune again: spp prune --force"
            )
    return SparseModel(model, StoredTensors(checkpoint, model), masks, decoder, linears)


def adapted_model(
    prune: Path, finetune: Path, *, dtype: torch.dtype | None, trust_remote_code: bool
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
    attach(sparse.model, [sparse.linears[name] for name in description["layers"]], method)
    load_adapter(sparse.model, finetune)
    return sparse


def float32_logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits (sequences, tokens, vocabulary) on the CPU, one sequence at a time."""
    with torch.no_grad():
        return torch.cat([model(row[None]).logits.float().cpu() for row in tokens])
