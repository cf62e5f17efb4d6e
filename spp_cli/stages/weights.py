"""The weights of chosen layers before and after, as histograms; no model is loaded for it."""

from __future__ import annotations

from typing import Any

import torch

from spp_cli.config import SppConfig
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.decoder import Decoder, select
from spp_cli.models.loading import empty_model
from spp_cli.models.stored import StoredTensors
from spp_cli.stages.stage import Sources

__all__ = ["weight_histogram"]

_BINS = 80
_RANGE = 4.0  # on either side, in root mean squares of the dense weights


def weight_histogram(config: SppConfig, sources: Sources, layer: str) -> dict[str, Any]:
    """Return how many weights of the layers that match the glob ``layer`` lie in each bin.

    ``layers`` are their names; ``edges`` those of the bins, one more than there are; ``counts``, by
    stage, of the weights that are not zero; ``zeros``, by stage, the share of those that are.
    Counted are the dense weights, the pruned ones and, if the run has them, the merged ones.

    Raises:
        ConfigError: ``layer`` matches no linear layer.
        ModelError: a checkpoint cannot be read.
    """
    folders = {"dense": sources.model}
    folders |= {name: sources.stages[name] for name in ("prune", "merge") if name in sources.stages}
    trusted = config.model.trust_remote_code
    model = empty_model(Checkpoint(sources.model), trust_remote_code=trusted)
    linears = select(Decoder(model).all_linears(), [layer], [], ("--layer", "--layer"))
    names = [linear.name for linear in linears]
    stored = {stage: StoredTensors(Checkpoint(path), model) for stage, path in folders.items()}

    def weights(stage: str, name: str) -> torch.Tensor:
        return stored[stage].read(f"{name}.weight").float()

    squares, size = 0.0, 0
    for name in names:
        weight = weights("dense", name)
        squares, size = squares + weight.square().sum().item(), size + weight.numel()
    end = _RANGE * (squares / size) ** 0.5 or 1.0
    edges = torch.linspace(-end, end, _BINS + 1)
    counts = {stage: torch.zeros(_BINS) for stage in stored}
    zeros = dict.fromkeys(stored, 0)
    for stage in stored:
        for name in names:
            weight = weights(stage, name).flatten()
            kept = weight[weight != 0]
            zeros[stage] += len(weight) - len(kept)
            counts[stage] += torch.histc(kept[kept.abs() <= end], _BINS, -end, end)
    return {
        "layers": names,
        "edges": edges.tolist(),
        "counts": {stage: count.long().tolist() for stage, count in counts.items()},
        "zeros": {stage: count / size for stage, count in zeros.items()},
    }
