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
from spp_cli.models.calls import BlockCalls, capture_calls
from spp_cli.models.decoder import Decoder, Linear
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
    decoder: Decoder,
    batches: Sequence[Tensor],
    linears: Sequence[Linear],
    method: PruningMethod,
    pattern: Pattern,
    *,
    stored_dtype: Callable[[str], torch.dtype],
    device: torch.device,
    reporter: Reporter,
) -> Iterator[PrunedLayer]:
    """Prune ``linears`` block by block, in place, and yield each as it is done.

    Args:
        batches: calibration tokens, (sequences, tokens) each; unused if the method needs none.
        stored_dtype: the type in which the weight of this name will be stored. The text flows on
            through the weight as rounded to it.
        device: where one block at a time is computed.

    Raises:
        ModelError: a dense weight holds NaN or infinity.
        NumericalError: an activation or a result does; the message names the layer.
    """
    wanted = {linear.name for linear in linears}
    calls = None
    if method.statistic is not None:
        decoder.place_shell(device)
        decoder.blocks[0].to(device)
        calls = capture_calls(decoder, (batch.to(device) for batch in batches))
    with reporter.task("prune", len(decoder.blocks), "blocks") as progress:
        for index, block in enumerate(decoder.blocks):
            block.to(device)
            chosen = [linear for linear in decoder.linears(index) if linear.name in wanted]
            groups = [[linear] for linear in chosen]
            statistics: list[Any] = [None] * len(chosen)
            if calls is not None and chosen:
                groups, statistics = _collect(block, index, chosen, calls, method.statistic)
            for group, statistic in zip(groups, statistics, strict=True):
                for linear, pruned in _prune_group(group, statistic, method, pattern):
                    weight = pruned.weight.to(stored_dtype(linear.name))
                    linear.weight.copy_(weight)
                    progress.advance(0, detail=linear.name)
                    yield PrunedLayer(linear, weight.cpu(), pruned.keep.cpu(), pruned.record)
            if calls is not None and index + 1 < len(decoder.blocks):
                for batch, hidden_states in enumerate(calls.hidden_states):
                    calls.hidden_states[batch] = calls.run(block, index, batch, hidden_states)
            block.to("cpu")
            progress.advance(1)


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
        for batch, hidden_states in enumerate(calls.hidden_states):
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
