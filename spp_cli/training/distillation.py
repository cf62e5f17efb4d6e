"""Learn from the dense model, too: not the next token alone, but what the dense model expects.

Hinton et al. 2015, arXiv:1503.02531, with the dense parent as the teacher.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from torch.utils.checkpoint import checkpoint

from spp_cli.models.cross_entropy import IGNORED, predicted
from spp_cli.training.objectives.causal import model_outputs

__all__ = ["Distillation", "share_equal_tensors"]


class Distillation:
    """How far a student's predictions are from those of its teacher, the dense model.

    ``weight`` is the share, 0 to 1, that this has in the loss; the rest is the student's own. Both
    models must have one vocabulary.
    """

    def __init__(self, teacher: nn.Module, weight: float, temperature: float) -> None:
        self._teacher = teacher.requires_grad_(False).eval()
        self._weight = weight
        self._temperature = temperature

    def blended(
        self, own: Tensor, logits: Tensor, inputs: dict[str, Any], count: Tensor | float
    ) -> Tensor:
        """Return the loss, a scalar, of which ``own`` is the student's part.

        ``logits`` (sequences, tokens, vocabulary) are what it makes of ``inputs``. Both parts are
        means over ``count`` labels, those of other batches of the step included.
        """
        with torch.no_grad():
            expected = model_outputs(self._teacher, inputs).logits
        counted = predicted(inputs["labels"]) != IGNORED
        # One sequence at a time, recomputed in the backward: a vocabulary in float32 is large.
        distances = [
            checkpoint(self._distance, ours[c], theirs[c], use_reentrant=False)
            for ours, theirs, c in zip(logits, expected, counted, strict=True)
        ]
        distance = torch.stack(distances).sum() / count
        return (1 - self._weight) * own + self._weight * distance

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the sum over tokens of T² · KL(teacher ‖ student), both at temperature T."""
        T = self._temperature
        ours, theirs = ((each.float() / T).log_softmax(dim=-1) for each in (student, teacher))
        return T**2 * kl_div(ours, theirs, log_target=True, reduction="sum")


def share_equal_tensors(teacher: nn.Module, student: nn.Module) -> None:
    """Let the teacher hold in the student's memory what both have and neither trains.

    They need not be in one place: each of the teacher's tensors goes to the student's device to be
    compared with its own, so that a GPU never holds the whole teacher for it.
    """
    own = {name: value for name, value in student.named_parameters() if not value.requires_grad}
    for name, parameter in teacher.named_parameters():
        found = own.get(name)
        if found is None or found.dtype != parameter.dtype:
            continue
        if torch.equal(found, parameter.to(found.device)):
            parameter.data = found.data
