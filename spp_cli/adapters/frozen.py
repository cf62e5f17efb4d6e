"""The pruned weight that an adapter stands on: frozen, and kept with its zeros or without."""

from __future__ import annotations

from torch import Tensor, nn

from spp_cli.sparsity.masks import pack, unpack
from spp_cli.sparsity.packing import Packed, pack_weight, unpack_weight

__all__ = ["DenseWeight", "FrozenLinear", "FrozenWeight", "PackedWeight"]


class FrozenWeight(nn.Module):
    """A weight (out_features, in_features) with its keep mask, in one kind of storage."""

    def __init__(self, shape: tuple[int, ...], bits: Tensor | None) -> None:
        super().__init__()
        self.shape = shape
        self.bits: Tensor | None
        self.register_buffer("bits", bits)

    def weight(self) -> Tensor:
        """Return the weight in the type it is stored in; not to be changed."""
        raise NotImplementedError

    def keep(self) -> Tensor:
        """Return the keep mask, (out_features, in_features) bool."""
        assert self.bits is not None, "only an adapter that says reads_mask is given the mask"
        return unpack(self.bits, self.shape)


class DenseWeight(FrozenWeight):
    """The weight as it is; ``keep`` may be left out where nobody asks for it."""

    def __init__(self, weight: Tensor, keep: Tensor | None = None) -> None:
        super().__init__(tuple(weight.shape), None if keep is None else pack(keep))
        self.dense = nn.Parameter(weight, requires_grad=False)

    def weight(self) -> Tensor:
        return self.dense


class PackedWeight(FrozenWeight):
    """The weights that stay and one bit for each, unpacked whenever the weight is asked for."""

    def __init__(self, weight: Tensor, keep: Tensor) -> None:
        values, bits = pack_weight(weight, keep)
        super().__init__(tuple(weight.shape), bits)
        self.values = nn.Parameter(values, requires_grad=False)

    def weight(self) -> Tensor:
        assert self.bits is not None
        return unpack_weight(Packed(self.values, self.bits), self.shape)


class FrozenLinear(nn.Linear):
    """A linear on a frozen weight: Y = X Wᵀ + bias."""

    def __init__(self, base: FrozenWeight, bias: Tensor | None) -> None:
        nn.Module.__init__(self)  # the linear's own would draw a weight that is not needed
        self.out_features, self.in_features = base.shape
        self.base = base
        frozen_bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", frozen_bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The frozen weight (out_features, in_features), whatever the module before held."""
        return self.base.weight()
