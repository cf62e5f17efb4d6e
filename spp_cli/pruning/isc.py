"""ISC: SparseGPT with a saliency that also counts what a weight does by itself.

Shao et al. 2023, One-Shot Sensitivity-Aware Mixed Sparsity Pruning for Large Language Models,
arXiv:2310.09499.
"""

from __future__ import annotations

from typing import Literal

from spp_cli.deferred import Tensor, torch
from spp_cli.pruning.factor import Factor
from spp_cli.pruning.sparsegpt import SparseGPT

__all__ = ["ISC"]


class ISC(SparseGPT):
    """Rank weights by W²_ij · (H_jj + 1 / [H⁻¹]_jj), equation 4; compensate as SparseGPT does.

    H_jj is what removing a weight costs if the others stay as they are, 1 / [H⁻¹]_jj what it costs
    if all the others make up for it. The released code has 1 / U_jj in place of the latter, and
    leaves N:M to SparseGPT's score.
    """

    name: Literal["isc"] = "isc"  # type: ignore[assignment]

    def scale(self, factor: Factor) -> Tensor:
        """Return (H_jj + 1 / [H⁻¹]_jj)^-½ of the whole damped Hessian: (in_features,)."""
        U = factor.upper
        identity = torch.eye(len(U), device=U.device)
        diagonal = torch.linalg.solve_triangular(U, identity, upper=True).square().sum(dim=1)
        return (diagonal + 1 / U.square().sum(dim=0)).rsqrt()
