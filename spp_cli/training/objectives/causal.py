"""The next token, as the loss: computed from the logits, alike for every model.

The losses that models return are not alike: some give the mean over their batch, whatever else
belongs to the step (``accepts_loss_kwargs = False``). A token of a short batch would then weigh
more than one of a long, and accumulated gradients would not be those of a larger batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spp_cli.models.cross_entropy import IGNORED, predicted, token_losses

__all__ = ["causal_loss", "count_predicted", "model_outputs", "row_losses"]


def model_outputs(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """Return what the model makes of the inputs, which it is not given the labels of."""
    asked = {key: value for key, value in inputs.items() if key != "labels"}
    return model(**asked, use_cache=False)


def count_predicted(inputs: dict[str, Any]) -> Tensor:
    """Return how many predictions count in each row of a batch: (sequences,), whole numbers."""
    return (predicted(inputs["labels"]) != IGNORED).sum(dim=1)


def causal_loss(
    model: nn.Module, outputs: Any, inputs: dict[str, Any], count: Tensor | float
) -> Tensor:
    """Return the summed cross-entropy of a batch over ``count``, the predictions of all its step.

    A mixture whose config asks for it adds what its experts lack in balance.
    """
    loss = token_losses(outputs.logits, inputs["labels"]).sum() / count
    balance = getattr(outputs, "aux_loss", None)
    if isinstance(balance, Tensor):
        share = count_predicted(inputs).sum() / count
        loss = loss + _balance_coefficient(model) * share * balance.to(loss.device)
    return loss


@torch.no_grad()
def row_losses(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Return the summed cross-entropy in nats of each row of a batch: (sequences,), float64."""
    logits = model_outputs(model, inputs).logits
    return token_losses(logits, inputs["labels"]).sum(dim=1, dtype=torch.float64)


def _balance_coefficient(model: Any) -> float:
    """Return the factor that the model itself gives to its experts' balance in the loss."""
    model = getattr(model, "module", model)  # of several processes
    for place in (model, model.config.get_text_config()):
        for name in ("router_aux_loss_coef", "aux_loss_coef"):
            if hasattr(place, name):
                return float(getattr(place, name))
    return 0.0
