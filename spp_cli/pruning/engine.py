"""The engine that all methods share: walk the decoder blocks, collect statistics, prune, go on.

Order of the published methods ("two-pass"): statistics for all linears of a block from its dense
weights, prune them, run the block again so that the next block sees what it will really receive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spp_cli.errors import ConfigError, ModelError, NumericalError
from spp_cli.models.activations import ActivationStore
from spp_cli.models.calls import BlockCalls, capture_calls
from spp_cli.models.decoder import Decoder, Linear
from spp_cli.models.streaming import BlockSource
from spp_cli.progress import Reporter, Task
from spp_cli.pruning.method import Pruned, PruningMethod
from spp_cli.pruning.statistics import Statistic
from spp_cli.refining.refinement import Refinement
from spp_cli.sparsity.patterns import Pattern

__all__ = ["PrunedLayer", "Recipe", "check_fits", "collect_statistics", "prune_blocks"]

_WORTH_A_WARNING = 0.01  # of the weights in the blocks; less is convolutions, routers and the like


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


@dataclass(frozen=True)
class Recipe:
    """How weights are chosen, by the same method in all layers.

    ``pattern_of`` is the pattern of the linear of a name. ``stored_dtype`` is the type in which its
    weight will be stored: the text flows on through the weight as rounded to it.
    """

    method: PruningMethod
    refinement: Refinement
    pattern_of: Callable[[str], Pattern]
    stored_dtype: Callable[[str], torch.dtype]

    def statistics(self) -> list[type[Statistic]]:
        """Return what method and refinement ask to know of a layer's inputs, each once."""
        asked = (self.method.statistic, self.refinement.statistic)
        return list(dict.fromkeys(kind for kind in asked if kind is not None))


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
    recipe: Recipe,
    *,
    device: torch.device,
    activations: ActivationStore,
    done: int = 0,
    reporter: Reporter,
) -> Iterator[tuple[int, list[PrunedLayer]]]:
    """Prune ``linears`` block by block, and yield each block's index and layers as it is done.

    Args:
        source: brings one block at a time to ``device``.
        batches: calibration tokens, (sequences, tokens) each; unused if nothing asks for them.
        activations: where the hidden states of the batches are kept between blocks; empty.
        done: blocks that an interrupted pruning finished. ``source`` gives them as they were
            pruned, the text only flows through them.

    Raises:
        ModelError: a dense weight holds NaN or infinity.
        NumericalError: an activation or a result does; the message names the layer.
    """
    wanted = {linear.name for linear in linears}
    blocks = len(source.decoder.blocks)
    _warn_of_what_stays_dense(source.decoder, reporter)
    calls = None
    if recipe.statistics():
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
                yield index, _prune_block(block, index, chosen, calls, recipe, progress)
            if calls is not None and index + 1 < blocks:
                for batch in range(len(calls.hidden_states)):
                    hidden_states = calls.hidden_states[batch]
                    calls.hidden_states[batch] = calls.run(block, index, batch, hidden_states)
            source.free(index)
            progress.advance(1)


def _warn_of_what_stays_dense(decoder: Decoder, reporter: Reporter) -> None:
    outside = decoder.outside_linears()
    size = sum(parameter.numel() for block in decoder.blocks for parameter in block.parameters())
    if (share := sum(outside.values()) / size) > _WORTH_A_WARNING:
        largest = max(outside, key=outside.__getitem__)
        reporter.warn(
            f"{share:.0%} of the weights in the decoder blocks are in no linear layer and stay "
            f"dense, such as {largest}; sparsity is counted over the linear layers"
        )


def _prune_block(
    block: nn.Module,
    index: int,
    linears: Sequence[Linear],
    calls: BlockCalls | None,
    recipe: Recipe,
    progress: Task,
) -> list[PrunedLayer]:
    """Prune linears of one block in place; what those with one input share is prepared once."""
    known = collect_statistics(block, index, linears, calls, recipe.statistics()) if calls else {}
    layers = []
    for linear in linears:
        inputs = known.get(linear.name)
        if inputs is not None and not inputs.is_prepared:
            sharing = [other.name for other in linears if known[other.name] is inputs]
            inputs.prepare(recipe.method, ", ".join(sharing))
        pruned = _prune_linear(linear, inputs, recipe)
        weight = pruned.weight.to(recipe.stored_dtype(linear.name))
        linear.weight.copy_(weight)
        layers.append(PrunedLayer(linear, weight.cpu(), pruned.keep.cpu(), pruned.record))
        progress.advance(0, detail=linear.name)
    return layers


def _prune_linear(linear: Linear, inputs: Known | None, recipe: Recipe) -> Pruned:
    weight = linear.weight.float()
    if not weight.isfinite().all():
        raise ModelError(
            f"{linear.name} holds NaN or infinity in the dense model. Copy or download it anew"
        )
    method, refinement = recipe.method, recipe.refinement
    pattern = recipe.pattern_of(linear.name)
    pruned = method.prune(weight, inputs and inputs.prepared, pattern)
    pruned = refinement.apply(weight, pruned, inputs and inputs.of(refinement), pattern)
    if not pruned.weight.isfinite().all():
        raise NumericalError(f"{method.name} made NaN or infinity of {linear.name}")
    assert not pruned.weight[~pruned.keep].count_nonzero(), linear.name
    return pruned


def collect_statistics(
    block: nn.Module,
    index: int,
    linears: Sequence[Linear],
    calls: BlockCalls,
    kinds: Iterable[type[Statistic]],
) -> dict[str, Known]:
    """Run the calibration text through one block; return what is known of each linear's inputs.

    Linears that are called with the very same tensor, such as q, k and v, have one object in
    common: their statistics are computed once. Which they are is seen in the first batch.
    """
    leader_of_input: dict[tuple[int, int], str] = {}
    seen: list[Tensor] = []  # kept for as long as their addresses identify them
    leaders: dict[str, str] = {}
    known: dict[str, Known] = {}

    def hook_for(linear: Linear) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = args[0]
            if linear.name not in leaders:
                seen.append(inputs)
                identity = (id(inputs), inputs._version)
                leaders[linear.name] = leader_of_input.setdefault(identity, linear.name)
            if leaders[linear.name] == linear.name:
                if linear.name not in known:
                    width, device = linear.in_features, inputs.device
                    known[linear.name] = Known({kind: kind(width, device) for kind in kinds})
                rows = inputs.reshape(-1, inputs.shape[-1]).float()
                for statistic in known[linear.name].statistics.values():
                    statistic.update(rows, samples=len(hidden_states))

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
    return {linear.name: known[leaders[linear.name]] for linear in linears}


class Known:
    """What is known of one input: its statistics by kind, and what the method made of its own."""

    def __init__(self, statistics: Mapping[type[Statistic], Statistic]) -> None:
        self.statistics = statistics
        self.prepared: Any = None
        self.is_prepared = False

    def of(self, asking: PruningMethod | Refinement) -> Statistic | None:
        """Return the statistic that a method or a refinement asks for."""
        return self.statistics[asking.statistic] if asking.statistic else None

    def prepare(self, method: PruningMethod, names: str) -> None:
        """Let ``method`` make of its statistic what all linears with this input, ``names``, share.

        Raises:
            NumericalError: NaN or infinity among the inputs, or the method cannot.
        """
        if not all(statistic.is_finite() for statistic in self.statistics.values()):
            raise NumericalError(
                f"the inputs of {names} hold NaN or infinity. Try --dtype float32; "
                "if that does not help, the model or its input is damaged"
            )
        try:
            self.prepared = method.prepare(self.of(method))
        except NumericalError as error:
            raise NumericalError(f"{names}: {error}") from error
        self.is_prepared = True
