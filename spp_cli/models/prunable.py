"""Which linears of the decoder blocks can be pruned; what stays dense, and why.

A method judges a weight by what its layer is called with. So a layer has to be called, to compute
x · Wᵀ + b, and to be of one block only; and what merely steers is worth more than its size.
No family is named: a block of each kind runs once, on zeros that take no memory.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from spp_cli.models.calls import BlockCalls, capture_calls
from spp_cli.models.context import context_of
from spp_cli.models.decoder import Decoder, Linear
from spp_cli.models.experts import is_router
from spp_cli.models.stored import starred

__all__ = ["EXCLUDED", "Prunable"]

_STEERS = "steers: few outputs or few inputs"
_ROUTES = "steers: chooses among experts, or weighs them"
_OWN_FORWARD = "computes in another way than a linear layer"
_READ = "its weight is used without a call of the layer"
_UNUSED = "is not used by the decoder alone"
_SHARED = "is shared by several blocks"
EXCLUDED = "left out by prune.include or prune.exclude"
_TOKENS = 32  # of the probe: more than most windows and chunks of text ask for, and cheap


class Prunable:
    """The linears of a decoder that can be pruned, and what becomes of all other weights.

    ``linears``: in order. ``reasons``: of all others, by name, why not.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        linears = decoder.all_linears()
        shared = _shared(decoder)
        hidden = decoder.model.config.get_text_config().hidden_size
        uncalled = _uncalled(decoder)
        standard: dict[type[nn.Module], bool] = {}
        self.reasons: dict[str, str] = {}
        for linear in linears:
            if id(linear.parameter) in shared:
                self.reasons[linear.name] = _SHARED
            elif not _is_standard(linear, standard):
                self.reasons[linear.name] = _OWN_FORWARD
            elif linear.name in uncalled:
                self.reasons[linear.name] = uncalled[linear.name]
            elif min(linear.weight.shape) <= _few(hidden):
                self.reasons[linear.name] = _STEERS
        self.linears = [linear for linear in linears if linear.name not in self.reasons]

    def described(self, pruned: Collection[str]) -> dict[str, Any]:
        """Return what the decoder blocks have besides the ``pruned`` linears, by name.

        ``block_weights``: how many weights all blocks have. ``dense``: the matrices among them that
        are not pruned, by name, with ``*`` for the numbers of blocks and experts: how many
        ``matrices`` and ``weights`` that is, and ``why`` they stay dense. The largest come first.
        """
        return {"block_weights": self._decoder.block_weights(), "dense": self._dense(pruned)}

    def _dense(self, pruned: Collection[str]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}

        def add(name: str, weights: int, why: str) -> None:
            entry = found.setdefault(starred(name), {"matrices": 0, "weights": 0, "why": why})
            entry["matrices"] += 1
            entry["weights"] += weights

        counted: set[int] = set()
        for linear in self._decoder.all_linears():
            if linear.name not in pruned and id(linear.parameter) not in counted:
                counted.add(id(linear.parameter))
                why = self.reasons.get(linear.name, EXCLUDED)
                add(f"{linear.name}.weight", linear.weight.numel(), why)
        for name, weights in self._decoder.outside_linears().items():
            add(name, weights, self._why_outside(name))
        return dict(sorted(found.items(), key=lambda entry: -entry[1]["weights"]))

    def _why_outside(self, name: str) -> str:
        """Return why a matrix is in none of the linears."""
        path = name.rpartition(".")[0]
        module = self._decoder.model.get_submodule(path)
        if isinstance(module, nn.Linear) or is_router(module, path):
            return _ROUTES  # the only linears that a decoder leaves out
        if isinstance(module, nn.modules.conv._ConvNd):
            return "is a convolution"
        return "is in no linear layer"


def _few(hidden: int) -> int:
    """Return how many outputs, or inputs, a linear may have that weighs heads or mixes streams.

    One for each head or stream: 4 in Gemma 3n's AltUp, 64 in the indexers of DeepSeek and GLM. A
    projection that is as narrow in a large model does not exist: a single key's has 64 to 256.
    """
    return max(8, min(64, hidden // 64))


def _shared(decoder: Decoder) -> set[int]:
    """Return the identities of the parameters that more than one block has, or one twice."""
    seen: set[int] = set()
    twice: set[int] = set()
    for block in decoder.blocks:
        for _, parameter in block.named_parameters(remove_duplicate=False):
            (twice if id(parameter) in seen else seen).add(id(parameter))
    return twice


def _is_standard(linear: Linear, known: dict[type[nn.Module], bool]) -> bool:
    """Whether a linear's module computes x · Wᵀ + b, found out with a few of its rows."""
    kind = type(linear.module)
    if kind.forward in (nn.Linear.forward, Conv1D.forward):
        return True
    if kind not in known:
        rows, columns = 8, linear.in_features
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(2, 3, columns, generator=generator)
        weight = torch.randn(rows, columns, generator=generator)
        few = copy.copy(linear.module)
        bias = None if linear.bias is None else torch.randn(rows, generator=generator)
        few._parameters = {
            "weight": nn.Parameter(linear.as_stored(weight)),
            "bias": None if bias is None else nn.Parameter(bias),
        }
        try:
            found = few(inputs)
            right = nn.functional.linear(inputs, weight, bias)
            known[kind] = found.shape == right.shape and torch.allclose(found, right, atol=1e-4)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
            known[kind] = False
    return known[kind]


def _uncalled(decoder: Decoder) -> dict[str, str]:
    """Return by name the linears that their block does not call, though it runs, and why.

    Empty if no block can be run alone: then no text flows either. An expert's are not among them,
    which are called only if a token is routed to them.
    """
    of_block = [_kind(block) for block in decoder.blocks]
    kinds = {kind: of_block.index(kind) for kind in of_block}
    with _zeros(decoder, kinds.values()), _switches_as_they_are(decoder.model):
        try:
            found = _probe(decoder, kinds)
        except Exception:  # noqa: BLE001 - a family's own code; text that flows later tells why
            return {}
    reasons = {}
    for index, kind in enumerate(of_block):
        why = found[kind]
        for linear in decoder.linears(index):
            path = _path_in_block(linear, decoder, index)
            if path in why and not linear.is_routed:
                reasons[linear.name] = why[path]
    return reasons


def _kind(block: nn.Module) -> Any:
    """Return what blocks have in common that compute alike: modules, shapes, words and switches."""
    return tuple(
        (
            path,
            type(module),
            tuple(tensor.shape for tensor in module.parameters(recurse=False)),
            tuple(item for item in vars(module).items() if isinstance(item[1], bool | str)),
        )
        for path, module in block.named_modules()
    )


@torch.no_grad()
def _probe(decoder: Decoder, kinds: Mapping[Any, int]) -> dict[Any, dict[str, str]]:
    """Return for each kind of block the linears by path that are not called, and why."""
    config = decoder.model.config
    length = min(_TOKENS, context_of(config) or _TOKENS)
    tokens = torch.arange(length)[None] % (config.get_text_config().vocab_size - 1) + 1
    calls = capture_calls(decoder, [tokens], [])
    return {
        kind: _uncalled_in(calls, decoder.blocks[index], index, decoder)
        for kind, index in kinds.items()
    }


def _uncalled_in(
    calls: BlockCalls, block: nn.Module, index: int, decoder: Decoder
) -> dict[str, str]:
    """Return the linears by path that a block does not call, and why."""
    linears = {_path_in_block(linear, decoder, index): linear for linear in decoder.linears(index)}
    called: set[str] = set()
    hooks = [
        linear.module.register_forward_pre_hook(lambda *_, path=path: called.add(path))
        for path, linear in linears.items()
    ]
    try:
        with _Reads() as reads:
            calls.run_first(block, index)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        path: _READ if id(linear.parameter) in reads.seen else _UNUSED
        for path, linear in linears.items()
        if path not in called
    }


def _path_in_block(linear: Linear, decoder: Decoder, index: int) -> str:
    return linear.name.removeprefix(f"{decoder.path}.{index}.")


class _Reads(TorchFunctionMode):
    """Notes which tensors others are computed from, by identity."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):  # a shape or a type is not what is meant
            self.seen.update(id(item) for item in args if isinstance(item, nn.Parameter))
        return result


@contextmanager
def _switches_as_they_are(model: nn.Module) -> Iterator[None]:
    """Undo what a forward changes of modules, as BigBird turns to full attention for short text."""
    before = [
        (module, {k: v for k, v in vars(module).items() if isinstance(v, bool | int | str)})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, switches in before:
            vars(module).update(switches)


@contextmanager
def _zeros(decoder: Decoder, indices: Iterable[int]) -> Iterator[None]:
    """Put zeros in place of weights that are not in memory: all but those of the other blocks.

    Zeros that are only read take no memory, however many they are.
    """
    inside = {id(module) for block in decoder.blocks for module in block.modules()}
    modules = [module for module in decoder.model.base_model.modules() if id(module) not in inside]
    for index in indices:
        modules += decoder.blocks[index].modules()
    empty = [
        (module, name, parameter)
        for module in modules
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_meta
    ]
    for module, name, parameter in empty:
        # torch.zeros would write them; numpy takes pages that hold zeros already.
        zeros = torch.from_numpy(np.zeros(tuple(parameter.shape), np.float32))
        zeros = zeros if parameter.is_floating_point() else zeros.to(parameter.dtype)
        module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
    try:
        yield
    finally:
        for module, name, parameter in empty:
            module._parameters[name] = parameter
