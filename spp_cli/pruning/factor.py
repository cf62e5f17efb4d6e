"""The Cholesky factor of a damped Hessian's inverse: what removing weights one by one rests on."""

from __future__ import annotations

from typing import NamedTuple

from spp_cli.deferred import Tensor, torch
from spp_cli.errors import NumericalError

__all__ = ["Factor", "inverse_factor"]


class Factor(NamedTuple):
    """What layers with the same input share: U with UᵀU = H⁻¹, dead inputs, the damping used.

    The inverse of H without its first j rows and columns is U[j:, j:]ᵀ U[j:, j:]: what is known of
    the columns from j on, once those before them are frozen.
    """

    upper: Tensor  # (in_features, in_features)
    dead: Tensor  # (in_features,) bool
    damping: float


def inverse_factor(H: Tensor, damping: float, name: str) -> Factor:
    """Return the upper Cholesky factor of the inverse of ``H``, damped.

    A Hessian that cannot be factorised is damped ten times more, three times at most, then tried
    in float64; the damping that worked is in the result.

    Args:
        H: (in_features, in_features), float32; overwritten.
        damping: added to the diagonal, as a share of its mean. Dead inputs count as 1 there.
        name: of the method, for the message.

    Raises:
        NumericalError: nothing of this helped.
    """
    diagonal = H.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    mean = diagonal.mean()
    for exponent, dtype in (
        (0, H.dtype),
        (1, H.dtype),
        (2, H.dtype),
        (3, H.dtype),
        (3, torch.float64),
    ):
        tried = damping * 10**exponent
        damped = H.to(dtype, copy=True)
        damped.diagonal().add_(tried * mean)
        upper = _upper_factor_of_inverse(damped)
        if upper is not None:
            return Factor(upper.float(), dead, tried)
    raise NumericalError(
        f"the Hessian cannot be factorised, not even with damping {tried:g} in float64. "
        f"Set a larger damping (method: {{name: {name}, damping: 0.1}}) or more samples"
    )


def _upper_factor_of_inverse(H: Tensor) -> Tensor | None:
    """Return U, upper triangular, with UᵀU = H⁻¹; None if H is not positive definite enough."""
    lower, failed = torch.linalg.cholesky_ex(H)
    if failed:
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if failed or not upper.isfinite().all() else upper
