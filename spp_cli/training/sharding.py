"""Training of a model of which each process holds a part: FSDP2, through accelerate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from spp_cli import processes
from spp_cli.errors import ConfigError

__all__ = [
    "check_launch",
    "load_whole_state",
    "loading_device",
    "shard_by_blocks",
    "whole_state",
]


def check_launch(*, is_mixture: bool) -> None:
    """Refuse what accelerate's configuration may ask for and an adapter cannot be trained with.

    Raises:
        ConfigError: with the key of that configuration.
    """
    if not _is_asked_for():
        return
    if is_mixture:
        # The processes add up gradients expert by expert, and would wait for one that has none.
        raise ConfigError(
            "finetune cannot shard a mixture of experts, where one may have no tokens. "
            "Start it with configs/accelerate/ddp.yaml"
        )
    for key, variable, default, wanted in (
        ("fsdp_version", "FSDP_VERSION", "1", "2"),
        # Each process reads the weights itself, to check their zeros.
        ("fsdp_cpu_ram_efficient_loading", "FSDP_CPU_RAM_EFFICIENT_LOADING", "false", "false"),
        ("fsdp_offload_params", "FSDP_OFFLOAD_PARAMS", "false", "false"),
    ):
        found = os.environ.get(variable, default).lower()
        if found != wanted:
            raise ConfigError(
                f"accelerate's {key} is {found}, and finetune needs {wanted}. "
                "Set it so, as configs/accelerate/fsdp2.yaml does"
            )


def loading_device(device: torch.device) -> torch.device:
    """Return where weights are to be read: main memory, if ``device`` is to get only a part."""
    return torch.device("cpu") if _is_asked_for() else device


def shard_by_blocks(accelerator: Accelerator, blocks: Sequence[nn.Module]) -> bool:
    """Have ``accelerator`` shard a model block by block; return False if it was not asked to."""
    state = accelerator.state
    if _is_asked_for() and state.distributed_type == DistributedType.MULTI_CPU:
        # accelerate leaves FSDP out on CPUs, where it works as well; that is how it can be tested.
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if state.distributed_type != DistributedType.FSDP:
        return False
    plugin = state.fsdp_plugin
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in blocks})
    return True


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer of sharded parameters as if they were whole.

    All processes have to ask for it.
    """
    state: dict[str, Any] = optimizer.state_dict()
    state["state"] = {
        number: {name: processes.whole(value).cpu() for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return state


def load_whole_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimizer of sharded parameters what ``whole_state`` returned."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in state["state"].items():
        parameter = parameters[number]
        for name, value in values.items():
            if value.shape == parameter.shape:
                values[name] = processes.spread(value, parameter)
    optimizer.load_state_dict(state)


def _is_asked_for() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
