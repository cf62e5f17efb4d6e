"""The engine that all methods share: walk the decoder blocks, collect statistics, prune, go on.

Order of the published methods ("two-pass"): statistics for all linears of a block from its dense
weights, prune them, run the block again so that the next block sees what it will really receive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spp_cli.errors import ConfigError, ModelError, NumericalError
from spp_cli.models.activations import ActivationStore
from spp_cli.models.calls import BlockCalls, capture_calls
from spp_cli.models.decoder import Linear
from spp_cli.models.streaming import BlockSource
from spp_cli.progress import Reporter
from spp_cli.pruning.method import Pruned, PruningMethod
from spp_cli.pruning.statistics import Statistic
from spp_cli.sparsity.patterns import Pattern

__all__ = ["PrunedLayer", "check_fits", "prune_blocks"]


@dataclass(frozen=True)
class PrunedLayer:
    """One linear, pruned: weight in the type it is stored in, keep its mask, both (out, in)."""

    linear: Linear
    weight: Tensor
    keep: Tensor
    record: Mapping[str, float]

    @property
    def sparsity(self) -> float:
        """The share of weights that the mask drops, 0 to 1."""
        return 1 - self.keep.count_nonzero().item() / self.keep.numel()


def check_fits(linears: Sequence[Linear], method: PruningMethod, pattern: Pattern) -> None:
    """Refuse, before anything is computed, what cannot be pruned.

    Raises:
        ConfigError: the pattern suits not the method, or not the width of a layer.
    """
    if problem := method.misfit(pattern):
        raise ConfigError(f"prune.method {method.name}: {problem}")
    for linear in linears:
        if problem := pattern.misfit(linear.in_features):
            raise ConfigError(f"prune.pattern is {str(pattern)!r}; {linear.name} {problem}")


@torch.no_grad()
def prune_blocks(
    source: BlockSource,
    batches: Sequence[Tensor],
    linears: Sequence[Linear],
    method: PruningMethod,
    pattern: Pattern,
    *,
    stored_dtype: Callable[[str], torch.dtype],
    device: torch.device,
    activations: ActivationStore,
    done: int = 0,
    reporter: Reporter,
) -> Iterator[tuple[int, list[PrunedLayer]]]:
    """Prune ``linears`` block by block, and yield each block's index and layers as it is done.

    Args:
        source: brings one block at a time to ``device``.
        batches: calibration tokens, (sequences, tokens) each; unused if the method needs none.
        stored_dtype: the type in which the weight of this name will be stored. The text flows on
            through the weight as rounded to it.
        activations: where the hidden states of the batches are kept between blocks; empty.
        done: blocks that an interrupted pruning finished. ``source`` gives them as they were
            pruned, the text only flows through them.

    Raises:
        ModelError: a dense weight holds NaN or infinity.
        NumericalError: an activation or a result does; the message names the layer.
    """
    wanted = {linear.name for linear in linears}
    blocks = len(source.decoder.blocks)
    calls = None
    if method.statistic is not None:
        source.place_shell(device)
        source.load(0, device)
        placed = (batch.to(device) for batch in batches)
        calls = capture_calls(source.decoder, placed, activations)
    with reporter.task("prune", blocks, "blocks") as progress:
        for index in range(blocks):
            if index < done and calls is None:
                progress.advance(1)
                continue
            block = source.load(index, device)
            if index >= done:
                chosen = [lin for lin in source.decoder.linears(index) if lin.name in wanted]
                layers = []
                for linear, pruned in _prune_block(block, index, chosen, calls, method, pattern):
                    weight = pruned.weight.to(stored_dtype(linear.name))
                    linear.weight.copy_(weight)
                    progress.advance(0, detail=linear.name)
                    layer = PrunedLayer(linear, weight.cpu(), pruned.keep.cpu(), pruned.record)
                    layers.append(layer)
                yield index, layers
            if calls is not None and index + 1 < blocks:
                for batch in range(len(calls.hidden_states)):
                    hidden_states = calls.hidden_states[batch]
                    calls.hidden_states[batch] = calls.run(block, index, batch, hidden_states)
            source.free(index)
            progress.advance(1)


def _prune_block(
    block: nn.Module,
    index: int,
    linears: Sequence[Linear],
    calls: BlockCalls | None,
    method: PruningMethod,
    pattern: Pattern,
) -> Iterator[tuple[Linear, Pruned]]:
    """Prune the chosen linears of one block, group by group of those with the same input."""
    groups = [[linear] for linear in linears]
    statistics: list[Any] = [None] * len(linears)
    if calls is not None and linears:
        groups, statistics = _collect(block, index, linears, calls, method.statistic)
    for group, statistic in zip(groups, statistics, strict=True):
        yield from _prune_group(group, statistic, method, pattern)


def _collect(
    block: nn.Module,
    index: int,
    linears: Sequence[Linear],
    calls: BlockCalls,
    kind: type[Statistic] | None,
) -> tuple[list[list[Linear]], list[Statistic]]:
    """Run the calibration text through one block; return groups of linears and their statistics.

    Linears that are called with the very same tensor, such as q, k and v, form a group: their
    statistic is computed once. Which are is seen in the first batch.
    """
    assert kind is not None
    leader_of_input: dict[tuple[int, int], str] = {}
    seen: list[Tensor] = []  # kept for as long as their addresses identify them
    leaders: dict[str, str] = {}
    statistics: dict[str, Statistic] = {}

    def hook_for(linear: Linear) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = args[0]
            if linear.name not in leaders:
                seen.append(inputs)
                identity = (id(inputs), inputs._version)
                leaders[linear.name] = leader_of_input.setdefault(identity, linear.name)
            if leaders[linear.name] == linear.name:
                if linear.name not in statistics:
                    statistics[linear.name] = kind(linear.in_features, inputs.device)
                rows = inputs.reshape(-1, inputs.shape[-1]).float()
                statistics[linear.name].update(rows, samples=len(hidden_states))

        return hook

    hooks = [linear.module.register_forward_pre_hook(hook_for(linear)) for linear in linears]
    try:
        for batch in range(len(calls.hidden_states)):
            hidden_states = calls.hidden_states[batch]
            calls.run(block, index, batch, hidden_states)
            seen.clear()
            leader_of_input.clear()
    finally:
        for handle in hooks:
            handle.remove()
    unused = [linear.name for linear in linears if linear.name not in leaders]
    if unused:
        raise ModelError(
            f"no calibration text reached {unused[0]}, so it cannot be pruned by its inputs. "
            "Leave it out with prune.exclude"
        )
    groups = {
        leader: [linear for linear in linears if leaders[linear.name] == leader]
        for leader in statistics
    }
    return list(groups.values()), list(statistics.values())


def _prune_group(
    group: Sequence[Linear], statistic: Statistic | None, method: PruningMethod, pattern: Pattern
) -> Iterator[tuple[Linear, Pruned]]:
    """Prune the linears that share one input."""
    names = ", ".join(linear.name for linear in group)
    if statistic is not None and not statistic.is_finite():
        raise NumericalError(
            f"the inputs of {names} hold NaN or infinity. "
            "Try --dtype float32; if that does not help, the model or its input is damaged"
        )
    try:
        prepared = method.prepare(statistic)
    except NumericalError as error:
        raise NumericalError(f"{names}: {error}") from error
    for linear in group:
        weight = linear.weight.float()
        if not weight.isfinite().all():
            raise ModelError(
                f"{linear.name} holds NaN or infinity in the dense model. Copy or download it anew"
            )
        pruned = method.prune(weight, prepared, pattern)
        if not pruned.weight.isfinite().all():
            raise NumericalError(f"{method.name} made NaN or infinity of {linear.name}")
        assert not pruned.weight[~pruned.keep].count_nonzero(), linear.name
        yield linear, pruned
