"""The settings of every adapter; what computes is in a file each, imported when a layer is wrapped.

They are apart because a layer is a module of torch, which a configuration is checked without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from spp_cli.config import Section

if TYPE_CHECKING:
    from torch import Tensor

    from spp_cli.adapters.adapter import AdaptedLinear
    from spp_cli.adapters.frozen import FrozenWeight
    from spp_cli.adapters.lora import LoRALinear
    from spp_cli.adapters.masked_full import MaskedFullLinear
    from spp_cli.adapters.masked_lora import MaskedLoRALinear
    from spp_cli.adapters.multiplicative import MultiplicativeLinear
    from spp_cli.adapters.spp import SPPLinear

__all__ = ["SPP", "AdapterMethod", "LoRA", "LowRank", "MaskedFull", "MaskedLoRA", "Multiplicative"]


class AdapterMethod(Section):
    """Base of all adapters: one frozen model whose fields are its YAML keys."""

    reads_mask: ClassVar[bool] = False  # whether its layers ask for more than the weight tells

    name: str

    def wrap(self, base: FrozenWeight, bias: Tensor | None) -> AdaptedLinear:
        """Return an adapted layer that starts as the linear of ``base``."""
        raise NotImplementedError


class LowRank(AdapterMethod):
    """Settings of an adapter with a product B A of rank r, that starts as zero."""

    r: int = Field(16, ge=1, description="Rank of the product of B and A")
    scale: float = Field(2.0, gt=0, description="Factor of the product of B and A")


class SPP(AdapterMethod):
    """Settings of SPP. The released ones: 16 row groups, scale 2."""

    name: Literal["spp"] = "spp"
    r: int = Field(16, ge=1, description="Row groups that each have a row of A of their own")
    scale: float = Field(2.0, gt=0, description="Factor of the product of A and B")

    def wrap(self, base: FrozenWeight, bias: Tensor | None) -> SPPLinear:
        from spp_cli.adapters.spp import SPPLinear

        return SPPLinear(base, bias, self.r, self.scale)


class MaskedLoRA(LowRank):
    """Settings of masked LoRA."""

    reads_mask: ClassVar[bool] = True

    name: Literal["masked-lora"] = "masked-lora"

    def wrap(self, base: FrozenWeight, bias: Tensor | None) -> MaskedLoRALinear:
        from spp_cli.adapters.masked_lora import MaskedLoRALinear

        return MaskedLoRALinear(base, bias, self)


class Multiplicative(LowRank):
    """Settings of the multiplicative low-rank adapter."""

    name: Literal["multiplicative"] = "multiplicative"

    def wrap(self, base: FrozenWeight, bias: Tensor | None) -> MultiplicativeLinear:
        from spp_cli.adapters.multiplicative import MultiplicativeLinear

        return MultiplicativeLinear(base, bias, self)


class MaskedFull(AdapterMethod):
    """Masked full finetuning; it wants a far lower learning rate than the small adapters."""

    reads_mask: ClassVar[bool] = True

    name: Literal["masked-full"] = "masked-full"

    def wrap(self, base: FrozenWeight, bias: Tensor | None) -> MaskedFullLinear:
        from spp_cli.adapters.masked_full import MaskedFullLinear

        return MaskedFullLinear(base, bias)


class LoRA(LowRank):
    """Settings of plain LoRA."""

    name: Literal["lora"] = "lora"

    def wrap(self, base: FrozenWeight, bias: Tensor | None) -> LoRALinear:
        from spp_cli.adapters.lora import LoRALinear

        return LoRALinear(base, bias, self)
