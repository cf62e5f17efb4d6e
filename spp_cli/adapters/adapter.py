"""What an adapter is: a small trainable part around one frozen pruned linear.

Four promises, tested for every adapter: it starts as the identity; forward equals merged; exact
zeros stay zero; only the adapter trains.
"""

from __future__ import annotations

from torch import Tensor, nn

from spp_cli.config import Section

__all__ = ["AdaptedLinear", "AdapterMethod"]


class AdaptedLinear(nn.Linear):
    """A frozen linear with an adapter. Subclasses add parameters and say what weight they make.

    The weight is held as (out_features, in_features), whatever the module before it did.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)  # the linear's own would draw a weight that is not needed
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        frozen_bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", frozen_bias)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return what trains, by its name in the saved adapter."""
        frozen = ("weight", "bias")
        return {name: value for name, value in self.named_parameters() if name not in frozen}

    def effective_weight(self, weight: Tensor | None = None) -> Tensor:
        """Return the float32 weight (out_features, in_features) that the layer computes with.

        ``weight`` takes the place of the layer's own, so that a merge can start from the stored
        one whatever type training computed in.
        """
        raise NotImplementedError


class AdapterMethod(Section):
    """Base of all adapters: one frozen model whose fields are its YAML keys."""

    name: str

    def wrap(self, weight: Tensor, bias: Tensor | None) -> AdaptedLinear:
        """Return an adapted layer that starts as the linear of ``weight`` (out, in)."""
        raise NotImplementedError
