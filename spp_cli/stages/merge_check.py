"""The adapter's model and the merged one, compared on text of the run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from spp_cli.adapters.adapter import AdaptedLinear
from spp_cli.adapters.attach import adapted_layers
from spp_cli.config import SppConfig
from spp_cli.data.tokens import context_of
from spp_cli.errors import CheckFailed, NumericalError
from spp_cli.evaluation.perplexity import perplexity
from spp_cli.progress import Silent
from spp_cli.stages.merged_weights import MUCH, RoundingCost
from spp_cli.stages.recorded_text import recorded_text
from spp_cli.stages.sparse_model import SparseModel, float32_logits
from spp_cli.stages.stage import Sources

__all__ = ["Losses", "MergeCheck", "costs_much", "refuse_lost_update"]

_LOGITS_OF = 4  # sequences; those of all would take gigabytes
_NEARLY_NOTHING = 0.1
_A_GAIN = 0.01  # nats a token; less is not told from chance by so few sequences


@dataclass(frozen=True)
class Losses:
    """Mean loss in nats a token of three models on the same sequences, and where these are from."""

    pruned: float
    adapter: float
    merged: float
    tokens: int
    source: str

    @property
    def gain_kept(self) -> float | None:
        """The share of the adapter's gain that is left; None: it is too small to be measured."""
        gain = self.pruned - self.adapter
        return (self.pruned - self.merged) / gain if gain >= _A_GAIN else None

    @property
    def drift(self) -> float:
        """How far the merged model's loss is from the adapter's."""
        return abs(self.merged - self.adapter)

    def described(self) -> dict[str, Any]:
        """Return them, and the share of the gain that is left, for the manifest."""
        return {**asdict(self), "gain_kept": self.gain_kept}

    def __str__(self) -> str:
        kept = "" if self.gain_kept is None else f": {self.gain_kept:.0%} of its gain is left"
        return (
            f"loss on {self.tokens:,} tokens of {self.source}: pruned {self.pruned:.4f}, "
            f"with the adapter {self.adapter:.4f}, merged {self.merged:.4f} nats{kept}"
        )


def costs_much(cost: RoundingCost, losses: Losses | None) -> bool:
    """Whether rounding takes more than a tenth of what the adapter brought.

    By its gain; where that is too small to be measured, by the norm of the error, unless this is
    seen to be harmless: all of the update is left and the loss is the adapter's.
    """
    if losses and losses.gain_kept is not None:
        return losses.gain_kept < 1 - MUCH
    harmless = cost.update_kept > 1 - MUCH and losses is not None and losses.drift < _A_GAIN
    return cost.error_share > MUCH and not harmless


def refuse_lost_update(cost: RoundingCost, losses: Losses | None, how: str) -> None:
    """Refuse a merge that has nearly nothing of its finetune.

    Raises:
        CheckFailed: so it is; ``how`` it was rounded is said.
    """
    left = losses.gain_kept if losses else None
    if min(cost.update_kept, 1.0 if left is None else left) > _NEARLY_NOTHING:
        return
    raise CheckFailed(
        f"rounding to {how} loses nearly all of the finetune: {cost.unchanged / cost.kept:.1%} of "
        f"the kept weights stay as pruned, {max(cost.update_kept, 0):.0%} of the update is left"
        f"{f'; {losses}' if losses else ''}. Nothing was saved. Set merge.rounding: stochastic or "
        "merge.dtype: float32, or finetune longer; merge.allow_loss: true merges all the same"
    )


class MergeCheck:
    """The adapter's model as it was before the merge, to compare the merged one with.

    On text of the run where it is at hand; on random tokens there are logits and no losses.
    """

    def __init__(self, config: SppConfig, sources: Sources, sparse: SparseModel) -> None:
        settings = config.merge
        self._model = model = sparse.model
        length = min(settings.check_length, context_of(model.config) or settings.check_length)
        self._text = recorded_text(
            sources, "validation", sequences=settings.check_sequences, length=length
        )
        self._tokens = torch.randint(
            model.config.get_text_config().vocab_size,
            (min(settings.check_sequences, _LOGITS_OF), length),
            generator=torch.Generator().manual_seed(config.seed),
        )
        if self._text:
            self._tokens = self._text.tokens[:_LOGITS_OF]
            self._adapter = _mean_loss(model, self._text.tokens)
            with _adapters_off(adapted_layers(model).values()):
                self._pruned = _mean_loss(model, self._text.tokens)
        self._logits = float32_logits(model, self._tokens.to(model.device))
        self.largest_logit = self._logits.abs().max().item()

    def merged(self) -> tuple[Losses | None, float]:
        """Return the losses now that it is merged, and the largest difference of a logit."""
        now = float32_logits(self._model, self._tokens.to(self._model.device))
        difference = (now - self._logits).abs().max().item()
        if self._text is None:
            return None, difference
        merged = _mean_loss(self._model, self._text.tokens)
        if not math.isfinite(self._pruned + self._adapter + merged):
            return None, difference
        sequences, length = self._text.tokens.shape
        predicted = sequences * (length - 1)
        losses = Losses(self._pruned, self._adapter, merged, predicted, self._text.source)
        return losses, difference


def _mean_loss(model: Any, tokens: Tensor) -> float:
    """Return the mean loss in nats a token on sequences (sequences, length); NaN if it has none."""
    try:
        return perplexity(model, tokens, batch_size="auto", reporter=Silent()).nats
    except NumericalError:
        return math.nan  # the merge names the layer, if it is one's


@contextmanager
def _adapters_off(layers: Iterable[AdaptedLinear]) -> Iterator[None]:
    """Have the layers compute with their frozen weights alone, while the context lasts."""
    parameters = [each for layer in layers for each in layer.adapter_parameters().values()]
    saved = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.data.zero_()
    try:
        yield
    finally:
        for parameter, before in zip(parameters, saved, strict=True):
            parameter.data.copy_(before)
