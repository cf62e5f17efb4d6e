"""Mixtures of experts taken apart: one linear layer for each projection of each expert.

transformers keeps the experts of a block in parameters of three axes, such as ``gate_up_proj`` of
(experts, 2 · intermediate, hidden), and multiplies by slices of them: no layer is there to count
the inputs of, to prune, or to put an adapter on. Here the same numbers, in the same memory, become
linears named gate_proj, up_proj and down_proj, whatever a family or its checkpoints call them.

No family is named: what serves as a sign is transformers' interface of experts, by which any module
tells how its parameters are laid out and how it can be given another way to compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface

__all__ = ["Part", "fused_parts", "has_experts", "is_router", "routers", "take_apart"]

_IMPLEMENTATION = "one_linear_each"  # the name of ours among transformers' ways to compute experts
_PROJECTIONS = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}


@dataclass(frozen=True)
class Part:
    """A tensor by its name, or a part of it: one expert's, and of that some rows."""

    name: str
    expert: int | None = None  # index on the first axis; None: the tensor has none of experts
    rows: slice | None = None  # None: all
    transposed: bool = False  # the tensor holds (in_features, out_features)

    @property
    def is_whole(self) -> bool:
        """Whether this is the tensor itself, and in its own layout."""
        return self == Part(self.name)

    def of(self, tensor: Tensor) -> Tensor:
        """Return a view of this part of ``tensor``: (out_features, in_features), or of a bias."""
        return self.within(tensor if self.expert is None else tensor[self.expert])

    def within(self, tensor: Tensor) -> Tensor:
        """Return a view of this part of what ``tensor`` holds of the expert."""
        matrix = tensor.T if self.transposed else tensor
        return matrix if self.rows is None else matrix[self.rows]


class _Expert(nn.Module):
    """The linears of one expert; ``_forward`` calls them."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear


def take_apart(model: nn.Module) -> None:
    """Turn the experts' parameters of ``model`` into linears that share their memory.

    Modules that compute experts in a way of their own are left as they are.
    """
    fused: list[Any] = [module for module in model.modules() if _is_fused(module)]
    for experts in fused:
        names = _projections(experts)
        inner = experts.down_proj.shape[1 if experts.is_transposed else 2]
        for number in range(experts.num_experts):
            expert = _Expert()
            for projection in names:
                parts = {
                    kind: _part(experts, number, projection, kind, inner).of(
                        getattr(experts, _fused(experts, projection, kind))
                    )
                    for kind in _kinds(experts)
                }
                expert.add_module(projection, _linear(**parts))
            experts.add_module(str(number), expert)
        for projection in names:
            for kind in _kinds(experts):
                experts._parameters.pop(_fused(experts, projection, kind), None)
        experts.config._experts_implementation = _IMPLEMENTATION


def fused_parts(model: nn.Module) -> dict[str, Part]:
    """Return, for each weight and bias of an expert, which part of which parameter it was."""
    return {
        f"{path}.{number}.{projection}.{kind}": _part(
            experts, int(number), projection, kind, expert.down_proj.in_features, f"{path}."
        )
        for path, experts in model.named_modules()
        for number, expert in experts.named_children()
        if isinstance(expert, _Expert)
        for projection in _projections(experts)
        for kind in _kinds(experts)
    }


def has_experts(model: nn.Module) -> bool:
    """Whether there are linears that are called only if a token is routed to them."""
    return any(
        isinstance(module, _Expert) or isinstance(getattr(module, "experts", None), nn.ModuleList)
        for module in model.modules()
    )


def is_router(module: nn.Module, path: str) -> bool:
    """Whether a module chooses among experts, as the name of it or of its class says."""
    return "router" in path or "router" in type(module).__name__.lower()


def routers(block: nn.Module) -> Iterator[nn.Linear]:
    """Yield the linears of ``block`` that choose among experts or weigh them.

    They are called so, are inside of what is called so, or stand beside the experts with one
    output for each or one for all.
    """
    for path, module in block.named_modules():
        if is_router(module, path):
            yield from (inner for inner in module.modules() if isinstance(inner, nn.Linear))
        experts = getattr(module, "experts", None)
        if not isinstance(experts, nn.Module):
            continue
        number = getattr(experts, "num_experts", None) or sum(1 for _ in experts.children())
        inside = {id(inner) for inner in experts.modules()}
        beside = (inner for inner in module.modules() if id(inner) not in inside)
        linears = (inner for inner in beside if isinstance(inner, nn.Linear))
        yield from (linear for linear in linears if linear.out_features in (1, number))


def _is_fused(module: nn.Module) -> bool:
    """Whether a module is one of experts by transformers' interface, and not yet taken apart."""
    if not all(hasattr(module, name) for name in ("is_transposed", "has_bias", "num_experts")):
        return False
    fused = [
        getattr(module, _fused(module, projection, "weight"), None)
        for projection in _projections(module)
    ]
    return all(
        isinstance(weight, nn.Parameter) and weight.dim() == 3 and len(weight) == module.num_experts
        for weight in fused
    )


def _projections(experts: Any) -> list[str]:
    return [name for name in _PROJECTIONS if experts.has_gate or name != "gate_proj"]


def _kinds(experts: Any) -> list[str]:
    return ["weight", "bias"] if experts.has_bias else ["weight"]


def _fused(experts: Any, projection: str, kind: str) -> str:
    """Return the name of the parameter that holds a projection of all experts."""
    name = _PROJECTIONS[projection] if experts.has_gate else projection
    return name if kind == "weight" else f"{name}_bias"


def _part(
    experts: Any, number: int, projection: str, kind: str, inner: int, path: str = ""
) -> Part:
    """Return the part that is a projection of one expert; ``inner`` is its intermediate size."""
    rows = None
    if experts.has_gate and projection != "down_proj":
        second = projection == "up_proj"
        if experts.is_concatenated:
            rows = slice(inner, 2 * inner) if second else slice(0, inner)
        else:
            rows = slice(int(second), None, 2)
    transposed = experts.is_transposed and kind == "weight"
    return Part(path + _fused(experts, projection, kind), number, rows, transposed)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=bias is not None, device="meta")  # draws no weight
    linear.weight = nn.Parameter(weight.data, weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.data, bias.requires_grad)
    return linear


def _forward(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Return Σ_k w_k · expert_k(x) for each token x: (tokens, hidden_size).

    ``hidden_states`` are (tokens, hidden_size), the others (tokens, k). Each expert's linears are
    called once, with the tokens routed to it; those of an expert without tokens are not called.
    """
    outputs = torch.zeros_like(hidden_states)
    for number in top_k_index.unique().tolist():
        if number >= self.num_experts:  # transformers marks a choice that does not count so
            continue
        expert = self.get_submodule(str(number))
        choice, token = torch.where(top_k_index.T.eq(number))
        states = hidden_states[token]
        if self.has_gate:
            # The module's own gate takes both in one tensor, in the order of its parameter.
            both = expert.gate_proj(states), expert.up_proj(states)
            joined = torch.cat(both, -1) if self.is_concatenated else _interleaved(*both)
            states = self._apply_gate(joined)
        else:
            states = self.act_fn(expert.up_proj(states))
        states = expert.down_proj(states)
        if self.has_post_expert_norm:
            states = self.post_expert_norm(states)
        weighted = states * top_k_weights[token, choice, None]
        outputs.index_add_(0, token, weighted.to(outputs.dtype))
    return outputs


def _interleaved(gate: Tensor, up: Tensor) -> Tensor:
    return torch.stack((gate, up), dim=-1).flatten(-2)


ExpertsInterface.register(_IMPLEMENTATION, _forward)
