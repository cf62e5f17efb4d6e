"""The engine that all methods share: walk the decoder blocks, prune each, write, go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spp_cli import processes
from spp_cli.errors import ConfigError, ModelError, NumericalError, SppError
from spp_cli.models.activations import ActivationStore
from spp_cli.models.calls import capture_calls
from spp_cli.models.decoder import Linear
from spp_cli.models.streaming import BlockSource
from spp_cli.progress import Reporter, Task
from spp_cli.pruning.inputs import Known
from spp_cli.pruning.magnitude import Magnitude
from spp_cli.pruning.method import Pruned, PruningMethod
from spp_cli.pruning.orders import Order, Round
from spp_cli.pruning.output_error import output_error
from spp_cli.pruning.region import Region
from spp_cli.pruning.saved import SavedStatistics
from spp_cli.pruning.statistics import Statistic, fewest
from spp_cli.recovering.recovery import NoRecovery, Recovery
from spp_cli.refining.refinement import NoRefinement, Refinement
from spp_cli.sparsity.masks import zeroed
from spp_cli.sparsity.patterns import Pattern

__all__ = ["PrunedLayer", "Recipe", "check_fits", "misfits", "prune_blocks"]


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
    """How weights are chosen, by one method in all layers.

    ``patterns`` has that of each linear by name. ``stored_dtype`` is the type in which the weight
    of a name will be stored: the text flows on through the weight as rounded to it.
    """

    method: PruningMethod
    refinement: Refinement
    patterns: Mapping[str, Pattern]
    stored_dtype: Callable[[str], torch.dtype]
    recovery: Recovery = field(default_factory=NoRecovery)

    def statistics(self) -> list[type[Statistic]]:
        """Return what must be known of a layer's inputs."""
        asking = (self.method, self.refinement, self.recovery)
        return fewest(each.statistic for each in asking)


def misfits(
    linears: Sequence[Linear], method: PruningMethod, patterns: Mapping[str, Pattern]
) -> dict[str, str]:
    """Return by linear why its pattern suits not the method, or not its width; empty if all do."""
    found = {}
    for linear in linears:
        pattern = patterns[linear.name]
        if problem := method.misfit(pattern):
            found[linear.name] = f"prune.method {method.name}: {problem}"
        elif problem := pattern.misfit(linear.in_features):
            found[linear.name] = f"prune.pattern is {str(pattern)!r}; {linear.name} {problem}"
    return found


def check_fits(
    linears: Sequence[Linear], method: PruningMethod, patterns: Mapping[str, Pattern]
) -> None:
    """Refuse, before anything is computed, what cannot be pruned.

    Raises:
        ConfigError: the pattern suits not the method, or not the width of a layer.
    """
    for problem in misfits(linears, method, patterns).values():
        raise ConfigError(problem)


@torch.no_grad()
def prune_blocks(
    source: BlockSource,
    batches: Sequence[Tensor],
    linears: Sequence[Linear],
    recipe: Recipe,
    *,
    order: Order | SavedStatistics,
    device: torch.device,
    activations: ActivationStore,
    done: int = 0,
    reporter: Reporter,
) -> Iterator[tuple[int, list[PrunedLayer]]]:
    """Prune ``linears`` block by block, and yield each block's index and layers as it is done.

    Args:
        order: when each linear of a block is pruned, and what text it sees before; or what is known
            beforehand of all inputs, and then no text flows.
        source: brings one block at a time to ``device``.
        batches: calibration tokens, (sequences, tokens) each; unused if nothing asks for them.
        activations: where the hidden states of the batches are kept between blocks; empty.
        done: blocks that an interrupted pruning finished. ``source`` gives them as they were
            pruned, the text only flows through them.

    Raises:
        ModelError: a dense weight holds NaN or infinity.
        NumericalError: an activation or a result does; the message names the layer.
    """
    of_block = source.decoder.by_block(linears)
    blocks = len(source.decoder.blocks)
    calls = None
    kinds = recipe.statistics()
    if kinds and isinstance(order, Order):
        source.place_shell(device)
        source.load(0, device)
        placed = (batch.to(device) for batch in batches)
        calls = capture_calls(source.decoder, placed, activations)
    with reporter.task("prune", blocks, "blocks") as progress:
        for index in range(blocks):
            if index < done and calls is None:
                progress.advance(1)
                continue
            block, is_last = source.load(index, device), index + 1 == blocks
            chosen = of_block[index]
            if index >= done:
                seen = _Seen()
                if calls and chosen and recipe.method.sees_blocks:
                    region = Region(block, index, chosen, calls)
                    of_linear = recipe.method.see_block(region, recipe.patterns)
                    seen = _Seen(of_linear, region.dense)
                rounds: Iterable[Round] = [[([linear], None) for linear in chosen]]
                if isinstance(order, SavedStatistics):
                    rounds = order.rounds(index, chosen, kinds, device)
                elif calls:
                    rounds = order.rounds(block, index, chosen, calls, kinds, is_last=is_last)
                layers = {
                    layer.linear.name: layer
                    for groups in rounds
                    for layer in _prune_round(groups, recipe, seen, progress)
                }
                yield index, [layers[linear.name] for linear in chosen]
            elif calls and not is_last:
                calls.flow_through(block, index)
            source.free(index)
            progress.advance(1)


@dataclass(frozen=True)
class _Seen:
    """What a method that looks at blocks saw of one, and the dense weights that it moved.

    Both by linear; empty for all other methods.
    """

    of_linear: Mapping[str, Any] = field(default_factory=dict)
    dense: Mapping[str, Tensor] = field(default_factory=dict)


def _prune_round(groups: Round, recipe: Recipe, seen: _Seen, progress: Task) -> list[PrunedLayer]:
    """Prune, in place, the linears of groups that are ready together.

    Several processes take turns, so that each solves its share of the groups for all.
    """
    owners = [number % processes.count() for number in range(len(groups))]
    layers: list[PrunedLayer] = []
    problem: SppError | None = None
    try:
        for (linears, known), owner in zip(groups, owners, strict=True):
            if owner == processes.number():
                layers += _prune_group(linears, known, recipe, seen)
                progress.advance(0, detail=linears[-1].name)
    except SppError as error:
        problem = error
    for found in processes.collect(problem):
        if found is not None:
            raise found
    if processes.count() == 1:
        return layers
    ours = {layer.linear.name: layer for layer in layers}
    records: dict[str, Mapping[str, float]] = {}
    for solved in processes.collect({name: dict(layer.record) for name, layer in ours.items()}):
        records |= solved
    return [
        _exchanged(linear, ours.get(linear.name), records[linear.name], recipe, owner)
        for (linears, _), owner in zip(groups, owners, strict=True)
        for linear in linears
    ]


def _exchanged(
    linear: Linear,
    layer: PrunedLayer | None,
    record: Mapping[str, float],
    recipe: Recipe,
    owner: int,
) -> PrunedLayer:
    """Return a layer that the process ``owner`` pruned, on all of them, and put it in place."""
    weight = linear.weight.contiguous()
    keep = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    if layer is not None:
        keep.copy_(layer.keep)
    processes.send(weight, owner)
    processes.send(keep, owner)
    linear.weight.copy_(weight)
    stored = weight.to(recipe.stored_dtype(linear.name))
    return PrunedLayer(linear, stored.cpu(), keep.bool().cpu(), record)


def _prune_group(
    linears: Sequence[Linear], known: Known | None, recipe: Recipe, seen: _Seen
) -> list[PrunedLayer]:
    """Prune, in place, linears that read one input."""
    method, refinement, recovery = recipe.method, recipe.refinement, recipe.recovery
    record: dict[str, float] = {}
    names = ", ".join(linear.name for linear in linears)
    if known is None and recipe.statistics():
        method, refinement, recovery = Magnitude(), NoRefinement(), NoRecovery()
        record = {"tokens": 0}
    elif known and known.tokens < linears[0].in_features:
        record = {"tokens": known.tokens}
    weights = [linear.weight.float() for linear in linears]
    for linear, weight in zip(linears, weights, strict=True):
        if not _is_finite(seen.dense.get(linear.name, weight)):
            raise ModelError(
                f"{linear.name} holds NaN or infinity in the dense model. Copy or download it anew"
            )
        if not _is_finite(weight):
            raise _made_infinite(method, linear)
    patterns = [recipe.patterns[linear.name] for linear in linears]
    prepared = known.prepare(method, names) if known else None
    if known and all(linear.name in seen.of_linear for linear in linears):
        results = [
            method.prune_seen(weight, prepared, pattern, seen.of_linear[linear.name])
            for linear, weight, pattern in zip(linears, weights, patterns, strict=True)
        ]
    else:
        results = method.prune_together(weights, prepared, patterns)
    statistic = known.of(refinement) if known else None
    layers = []
    for linear, weight, pattern, pruned in zip(linears, weights, patterns, results, strict=True):
        dense = seen.dense.get(linear.name, weight).float()
        refined = refinement.apply(dense, pruned, statistic, pattern)
        if known and recovery.statistic:
            refined = _recovered(recovery, dense, refined, known, linear.name)
        if not _is_finite(refined.weight):
            raise _made_infinite(method, linear)
        assert torch.equal(zeroed(refined.weight, refined.keep), refined.weight), linear.name
        stored = refined.weight.to(recipe.stored_dtype(linear.name))
        error = {"output_error": output_error(dense, stored, known or ())}
        linear.weight.copy_(stored)  # after the last use of the dense weight: they may be one
        figures = {**refined.record, **record, **error}
        layers.append(PrunedLayer(linear, stored.cpu(), refined.keep.cpu(), figures))
    return layers


def _recovered(
    recovery: Recovery, weight: Tensor, pruned: Pruned, known: Known, name: str
) -> Pruned:
    try:
        return recovery.recover(weight, pruned, known.of(recovery))
    except NumericalError as error:
        raise NumericalError(f"prune.recover {recovery.name}: {name}: {error}") from error


def _made_infinite(method: PruningMethod, linear: Linear) -> NumericalError:
    return NumericalError(f"{method.name} made NaN or infinity of {linear.name}")


def _is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite: the sum tells it at once, if it does not overflow."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
