"""Types and rounding: which type a tensor is stored in, and how a float32 value becomes one of it.

A value becomes one of its two neighbours in the type, so that none moves by more than one step.
What the type has is never changed, zeros above all; and no value becomes zero but one whose nearest
neighbour is zero.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

from spp_cli.errors import ModelError

__all__ = ["refuse_unstorable", "stochastic", "stored_type", "type_name"]


def stored_type(
    name: str,
    found: torch.dtype,
    asked: torch.dtype | None,
    always_float32: Iterable[str] = (),
) -> torch.dtype:
    """Return the type in which the tensor ``name``, found in type ``found``, is to be stored.

    ``asked`` (None: as found) is for floating-point tensors alone, and not for those with a part of
    ``always_float32`` in their name: they keep their type.
    """
    if asked is None or not found.is_floating_point:
        return found
    return found if any(part in name for part in always_float32) else asked


def type_name(dtype: torch.dtype) -> str:
    """Return "bfloat16" for ``torch.bfloat16``, as configurations have it."""
    return str(dtype).removeprefix("torch.")


def refuse_unstorable(name: str, exact: Tensor, stored: Tensor, setting: str) -> None:
    """Refuse a tensor that is NaN or infinite as it is ``stored``; ``exact`` is it before the cast.

    Raises:
        ModelError: it was so before, or overflows in a narrower type. ``setting`` chooses the type.
    """
    if not stored.is_floating_point() or bool(stored.isfinite().all()):
        return
    damaged = int((~exact.isfinite()).sum())
    if damaged:
        count = "1 value that is" if damaged == 1 else f"{damaged:,} values that are"
        raise ModelError(
            f"{name} holds {count} NaN or infinity. The model is damaged; copy or download it again"
        )
    raise ModelError(
        f"{name} has values of up to {exact.abs().max().item():.4g}, and {type_name(stored.dtype)} "
        f"holds at most {torch.finfo(stored.dtype).max:.5g}. Set {setting} to bfloat16 or float32"
    )


def stochastic(exact: Tensor, dtype: torch.dtype, *, seed: int, name: str) -> Tensor:
    """Return ``exact`` (float32) in ``dtype``, each value on average what it was.

    Of the two neighbours the nearer is the likelier: at a quarter of the step it is taken three
    times of four (Gupta et al. 2015, arXiv:1502.02551). The draw depends on ``seed`` and ``name``.
    """
    near, far = _neighbours(exact, dtype)
    step = (far.float() - near.float()).abs()
    chance = torch.where(step > 0, (exact - near.float()).abs() / step, 0.0)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    drawn = torch.rand(exact.shape, generator=generator).to(exact.device)
    return torch.where(drawn < chance, far, near)


def _neighbours(exact: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the nearest value of ``dtype``, and the next one on the other side of ``exact``.

    Both are the same where ``dtype`` has the value, where the other would be zero or infinity, and
    in types that are not narrower.
    """
    near = exact.to(dtype)
    if dtype.itemsize != 2:
        return near, near
    bits = near.view(torch.int16)  # the sign, then the magnitude, which counts up with the bits
    value = near.float()
    far = torch.where(value.abs() < exact.abs(), bits + 1, bits - 1).view(dtype)
    same = (value == exact) | (far == 0) | ~far.isfinite() | ~near.isfinite()
    return near, torch.where(same, near, far)
