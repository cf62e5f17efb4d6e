"""Whole tiny models, and their first block, for methods that look at blocks."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import make_model
from torch import Tensor

from spp_cli.models.activations import ActivationStore
from spp_cli.models.calls import capture_calls
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.loading import load_model
from spp_cli.models.streaming import ResidentModel
from spp_cli.progress import Silent
from spp_cli.pruning.engine import PrunedLayer, Recipe, prune_blocks
from spp_cli.pruning.method import PruningMethod
from spp_cli.pruning.orders import ORDERS
from spp_cli.pruning.region import Region
from spp_cli.recovering.recovery import NoRecovery, Recovery
from spp_cli.refining.refinement import NoRefinement, Refinement
from spp_cli.sparsity.patterns import Pattern

CPU = torch.device("cpu")


def tokens() -> Tensor:
    """Return six sequences."""
    return torch.randint(3, 128, (6, 24), generator=torch.Generator().manual_seed(0))


def model_of(family: str, folder: Path, **changes: object) -> ResidentModel:
    """Return a tiny random model in float32."""
    stored = Checkpoint(make_model(family, folder, **changes))
    return ResidentModel(load_model(stored, dtype=torch.float32))


@torch.no_grad()
def region_of(source: ResidentModel) -> Region:
    """Return the first block of a model with what comes to it, one sequence at a time."""
    calls = capture_calls(source.decoder, tokens().split(1), ActivationStore("device", CPU))
    return Region(source.decoder.blocks[0], 0, source.decoder.linears(0), calls)


def prune(
    source: ResidentModel,
    method: PruningMethod,
    order: str,
    pattern: Pattern,
    sequences: Tensor | None = None,
    refinement: Refinement | None = None,
    recovery: Recovery | None = None,
    only: str = "",
) -> dict[str, PrunedLayer]:
    """Prune, in place, the layers whose names have ``only`` in them; return them by name."""
    sequences = tokens() if sequences is None else sequences
    linears = [linear for linear in source.decoder.all_linears() if only in linear.name]
    recipe = Recipe(
        method,
        refinement or NoRefinement(),
        {linear.name: pattern for linear in linears},
        stored_dtype=lambda _: torch.float32,
        recovery=recovery or NoRecovery(),
    )
    found = prune_blocks(
        source,
        list(sequences.split(1)),
        linears,
        recipe,
        order=ORDERS[order](),
        device=CPU,
        activations=ActivationStore("device", CPU),
        reporter=Silent(),
    )
    return {layer.linear.name: layer for _, layers in found for layer in layers}
