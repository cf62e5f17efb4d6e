"""What an adapter is: a small trainable part around one frozen pruned linear.

Four promises, tested for every adapter: it starts as the identity; forward equals merged; exact
zeros stay zero; only the adapter trains.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from spp_cli.adapters.frozen import DenseWeight, FrozenLinear
from spp_cli.adapters.settings import AdapterMethod

__all__ = ["AdaptedLinear", "AdapterMethod"]


class AdaptedLinear(FrozenLinear):
    """A frozen linear with an adapter: Y = X Eᵀ + bias, where E is made of W and what trains.

    A subclass adds its parameters, and says what E they make and what their gradients are. Both are
    functions of their arguments alone, so that nothing but the input is kept for the backward.
    """

    keeps_zeros: ClassVar[bool] = True  # if not, a merge has to apply the mask again

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return what trains, by its name in the saved adapter."""
        own = self.named_parameters(recurse=False)
        return {name: parameter for name, parameter in own if name != "bias"}

    def effective(self, W: Tensor, *parameters: Tensor) -> Tensor:
        """Return E (out_features, in_features) in the type of the parameters, in new memory.

        W is the frozen weight, in any floating-point type; it is not to be changed.
        """
        raise NotImplementedError

    def gradients(self, G: Tensor, W: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the parameters from G = dL/dE, which may be overwritten."""
        raise NotImplementedError

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return X Eᵀ + bias for hidden_states X (..., in_features)."""
        device = hidden_states.device.type
        if torch.is_autocast_enabled(device):
            hidden_states = hidden_states.to(torch.get_autocast_dtype(device))
        output = self.product(hidden_states)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def product(self, X: Tensor) -> Tensor:
        """Return X Eᵀ."""
        result: Tensor = _Product.apply(X, self, *self.adapter_parameters().values())
        return result

    def effective_weight(self, weight: Tensor | None = None) -> Tensor:
        """Return the float32 weight (out_features, in_features) that the layer computes with.

        ``weight`` takes the place of the layer's own, so that a merge can start from the stored
        one whatever type training computed in.
        """
        parameters = list(self.adapter_parameters().values())
        W = self.weight if weight is None else weight.to(parameters[0].device)
        with torch.no_grad():
            return self.effective(W.float(), *parameters)

    def set_weight(self, weight: Tensor) -> None:
        """Compute from now on with ``weight`` as it is, the adapter adding nothing."""
        frozen = self.base.weight()
        keep = None if self.base.bits is None else self.base.keep()
        self.base = DenseWeight(weight.to(frozen.device, frozen.dtype), keep)
        for parameter in self.adapter_parameters().values():
            parameter.data.zero_()


class _Product(torch.autograd.Function):
    """Y = X Eᵀ in three matrix products, with only X saved beside the parameters.

    Autograd on the plain formula would keep E and its factors for each layer. Here E is rebuilt:
    dX = dY E, and the parameters' gradients come from G = dYᵀ X.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, layer: AdaptedLinear, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(X, *parameters)
        ctx.layer = layer
        return linear(X, layer.effective(layer.base.weight(), *parameters).to(X.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dY,) = gradients
        X, *parameters = ctx.saved_tensors
        W = ctx.layer.base.weight()
        E = dX = None
        if ctx.needs_input_grad[0]:
            E = ctx.layer.effective(W, *parameters).to(dY.dtype)
            dX = dY @ E
        if not any(ctx.needs_input_grad[2:]):
            return dX, None, *[None] * len(parameters)
        # G may have E's memory: a new piece of this size costs as much as reading it twice.
        G = torch.mm(dY.flatten(0, -2).T, X.flatten(0, -2), out=E)
        return dX, None, *ctx.layer.gradients(G.to(parameters[0].dtype), W, *parameters)
