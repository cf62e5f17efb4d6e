"""Whether a model holds packed rows apart: tried on the model itself, not looked up in a list."""

from __future__ import annotations

from typing import Any

import torch

from spp_cli.errors import ConfigError

__all__ = ["check_packing"]

_TOKENS = 12  # of a row; some more than the window of a convolution
# In standard deviations of the logits. Where rows are held apart, the first is all zeros to the
# second, whatever the type; the same row in another place is computed with other rounding.
_LEAK = 5e-3
_MOST = 0.15
_ROUNDING = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: _MOST}


def check_packing(model: Any) -> None:
    """Refuse ``finetune.data.packing`` for a model to which packed rows are one text.

    The logits of a row of random tokens must not change with the row before it in the sequence,
    and must be those that it has alone. Its loss is then its own, and so are the gradients.

    Raises:
        ConfigError: they are others.
    """
    was_training = model.training
    model.eval()
    try:
        leak, difference = _measured(model)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(_refusal(model, f"it cannot take them ({error})")) from error
    finally:
        model.train(was_training)
    if leak > _LEAK:
        raise ConfigError(_refusal(model, "a row sees the one before it"))
    if difference > _ROUNDING.get(next(model.parameters()).dtype, _MOST):
        raise ConfigError(_refusal(model, "a row's positions go on from the one before it"))


@torch.no_grad()
def _measured(model: Any) -> tuple[float, float]:
    """Return by how much a row's logits differ after two others, and from those it has alone."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    one, other, row = torch.randint(vocabulary, (3, _TOKENS), generator=generator).to(model.device)
    packed = torch.stack([torch.cat([one, row]), torch.cat([other, row])])
    positions = torch.arange(_TOKENS, device=model.device).repeat(2, 2)
    logits = model(packed, position_ids=positions, use_cache=False).logits[:, _TOKENS:].float()
    alone = model(row[None], use_cache=False).logits[0].float()
    leak, difference = (logits[0] - logits[1]).abs().max(), (logits[0] - alone).abs().max()
    return float(leak / alone.std()), float(difference / alone.std())


def _refusal(model: Any, reason: str) -> str:
    return (
        f"finetune.data.packing: {model.config.model_type} does not hold packed rows apart: "
        f"{' '.join(reason.split())}. Set finetune.data.packing to false"
    )
