"""Types and rounding: which type a tensor is stored in, and how a float32 value becomes one of it.

Every way of rounding picks one of the two neighbours of a value in the type, so that no value moves
by more than one step. What the type has is never changed, zeros above all; and no value becomes
zero but one whose nearest neighbour is zero.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

from spp_cli.errors import ModelError

__all__ = ["by_output", "nearest", "refuse_unstorable", "stochastic", "stored_type", "type_name"]

_COLUMNS = 128  # of a block, whose products with all others are brought up to date at once
_SWEEPS = 2


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


def nearest(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``exact`` (float32) in ``dtype``, each value the nearest there is."""
    return exact.to(dtype)


def stochastic(exact: Tensor, dtype: torch.dtype, *, seed: int, name: str) -> Tensor:
    """Return ``exact`` in ``dtype``, each value on average what it was.

    Of the two neighbours the nearer is the likelier: at a quarter of the step it is taken three
    times of four. The draw depends on ``seed`` and ``name`` alone.
    """
    near, far = _neighbours(exact, dtype)
    step = (far.float() - near.float()).abs()
    chance = torch.where(step > 0, (exact - near.float()).abs() / step, 0.0)
    generator = torch.Generator().manual_seed(seed * 2**32 + zlib.crc32(name.encode()))
    drawn = torch.rand(exact.shape, generator=generator).to(exact.device)
    return torch.where(drawn < chance, far, near)


def by_output(exact: Tensor, dtype: torch.dtype, gram: Tensor) -> Tensor:
    """Return ``exact`` (out, in) in ``dtype``, each value the neighbour that least changes outputs.

    The squared error of a row's outputs is r G rᵀ, where r is the rounding error of the row and
    ``gram`` G = Σ xᵀx (in, in) of its inputs. Input by input the better neighbour is taken: in the
    first sweep given the errors made so far (greedy path following, Lybrand and Saab 2021,
    arXiv:2010.15979), after it given all others (coordinate descent). A row is never left worse
    than by ``nearest``.
    """
    near, far = _neighbours(exact, dtype)
    if torch.equal(near, far):
        return near
    errors = [each.float() - exact for each in (near, far)]
    chosen = torch.zeros_like(exact)  # the error of each weight; none yet
    for _ in range(_SWEEPS):
        for start in range(0, exact.shape[1], _COLUMNS):
            _choose(chosen, errors, gram, slice(start, start + _COLUMNS))
    is_far = chosen == errors[1]
    worse = _energy(chosen, gram) > _energy(errors[0], gram)
    return torch.where(is_far & ~worse[:, None], far, near)


def _choose(chosen: Tensor, errors: list[Tensor], gram: Tensor, columns: slice) -> None:
    """Choose again for some inputs, one after the other, for all rows at once."""
    inner = gram[columns, columns]
    products = chosen @ gram[:, columns]  # of all errors with these inputs
    for place in range(len(inner)):
        column, square = columns.start + place, inner[place, place]
        before = chosen[:, column]
        others = products[:, place] - before * square
        near, far = (each[:, column] for each in errors)
        costs = [each * (2 * others + each * square) for each in (near, far)]
        after = torch.where(costs[1] < costs[0], far, near)
        products.addr_(after - before, inner[place])
        chosen[:, column] = after


def _energy(error: Tensor, gram: Tensor) -> Tensor:
    return ((error @ gram) * error).sum(dim=1)


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
