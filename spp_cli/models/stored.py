"""Where a checkpoint holds each tensor of a model: transformers renames some and joins others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, dot_natural_key

from spp_cli.errors import ModelError
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.experts import Part, fused_parts
from spp_cli.models.rounding import stored_type

__all__ = ["Read", "StoredTensors", "starred"]

_MERGED = ("MergeModulelist", 0)  # one stored tensor an expert becomes one tensor of all

# Returns a stored tensor by its name; with a number, what it holds of the expert of that number.
Read = Callable[[str, int | None], Tensor]


class StoredTensors:
    """The stored tensor, or the part of one, that each tensor of a model is.

    How they differ is taken from what transformers goes by when it loads the model: a checkpoint
    may hold its experts one by one or all in one tensor, under names old or new. ``untied`` are the
    parameters that config.json ties to another, and that are stored with values of their own.
    """

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel) -> None:
        self.checkpoint = checkpoint
        self._strict = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
        self._float16 = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
        self._parts = fused_parts(model)
        # the names of experts' parameters, and how many experts each is of
        self._experts = {part.name: (part.expert or 0) + 1 for part in self._parts.values()}
        names = {*self._experts, *(model.state_dict().keys() - self._parts.keys())}
        self._sources = _sources(checkpoint.locations, model, names)
        self._model_names = {
            stored: name
            for name, source in self._sources.items()
            for stored in source.stored_names()
        }
        self.untied = self._tie(model)

    def _tie(self, model: PreTrainedModel) -> set[str]:
        """Let each tied parameter that is not stored be what it is tied to; return the others.

        As transformers has it: what config.json ties and the checkpoint holds twice, with different
        values, is not tied; and of several that are tied any one may be stored.
        """
        untied = set()
        ties: dict[str, list[str]] = {}
        for name, origin in model.all_tied_weights_keys.items():
            ties.setdefault(origin, []).append(name)
        for origin, tied in ties.items():
            group = [origin, *tied]
            if not (stored := [name for name in group if name in self._sources]):
                continue
            for name in group:
                if name not in self._sources:
                    self._sources[name] = self._sources[stored[0]]
                elif not self._are_equal(name, stored[0]):
                    untied.add(name)
        return untied

    def _are_equal(self, name: str, other: str) -> bool:
        if self._sources[name] is self._sources[other]:
            return True
        layouts = [(self.shape(each), self.dtype(each)) for each in (name, other)]
        return layouts[0] == layouts[1] and torch.equal(self.read(name), self.read(other))

    def part(self, name: str) -> Part:
        """Return what is stored of the model's tensor ``name``.

        Raises:
            ModelError: nothing is, or it is mixed with others in a way that is not known here.
        """
        part = self._parts.get(name) or Part(name)
        source = self._sources.get(part.name)
        if source is None:
            raise ModelError(
                f"{self.checkpoint.folder} has no tensor {part.name}, which its config.json asks "
                "for. Copy it anew"
            )
        self._count_experts(part.name, source)
        if (found := source.find(part)) is None:
            raise ModelError(
                f"{self.checkpoint.folder}: transformers makes {part.name} of "
                f"{', '.join(source.stored_names()[:2])} in a way that spp does not follow. "
                f"Leave {starred(name).removesuffix('.weight')} out with prune.exclude"
            )
        return found

    def _count_experts(self, name: str, source: _Source) -> None:
        if (asked := self._experts.get(name)) is None:
            return
        merged = source.steps()[:1] == [_MERGED]
        for names in source.stored.values():
            stored = len(names) if merged else self.checkpoint.shape(names[0])[0]
            if stored != asked:
                raise ModelError(
                    f"{self.checkpoint.folder} has {stored} experts in {names[0]} and the like, "
                    f"and config.json asks for {asked}. Copy it anew"
                )

    def read(self, name: str, read: Read | None = None) -> Tensor:
        """Return the model's tensor ``name`` as it is stored; ``read`` reads stored tensors."""
        part = self.part(name)
        return part.within((read or self.checkpoint.tensor)(part.name, part.expert))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that ``read`` would give, without reading."""
        part = self.part(name)
        return tuple(part.of(torch.empty(self.checkpoint.shape(part.name), device="meta")).shape)

    def dtype(self, name: str, asked: torch.dtype | None = None) -> torch.dtype:
        """Return the type in which the model's tensor ``name`` is stored, or will be if ``asked``.

        What transformers computes in float32 whatever the model's type is, such as a router's bias,
        keeps the type it has.
        """
        return self.type_of_stored(self.part(name).name, asked)

    def type_of_stored(self, stored: str, asked: torch.dtype | None) -> torch.dtype:
        """Return what ``dtype`` does, of a stored tensor by its stored name."""
        kept = self._strict + (self._float16 if asked == torch.float16 else ())
        found = self.checkpoint.dtype(stored)
        return stored_type(self.model_name(stored), found, asked, kept)

    def is_of_the_model(self, stored: str) -> bool:
        """Whether the model has a tensor that is made of this stored one."""
        return stored in self._model_names

    def model_name(self, stored: str) -> str:
        """Return the name of the parameter that a stored tensor becomes or is part of.

        A stored tensor that the model does not have keeps its own name.
        """
        return self._model_names.get(stored, stored)

    def unused(self) -> list[str]:
        """Return the names of the stored tensors that are no part of the model."""
        return [name for name in self.checkpoint.locations if name not in self._model_names]


def starred(name: str) -> str:
    """Return ``name`` with ``*`` for the numbers of blocks and experts: a glob of all alike."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


@dataclass(frozen=True)
class _Source:
    """What a parameter is made of: by each source pattern of a converter, the stored tensors."""

    converter: Any  # None: the parameter is one stored tensor as it is
    stored: dict[str | None, list[str]]

    def stored_names(self) -> list[str]:
        return [name for names in self.stored.values() for name in names]

    def steps(self) -> list[tuple[str, int | None]]:
        """Return the converter's operations by name, each with its axis."""
        operations = self.converter.operations if self.converter else ()
        return [(type(step).__name__, getattr(step, "dim", None)) for step in operations]

    def find(self, part: Part) -> Part | None:
        """Return where ``part`` of the parameter is stored; None: that is not known."""
        lists = list(self.stored.values())
        if self.converter is None:
            return replace(part, name=lists[0][0])
        if part.expert is None:
            return None
        steps, joined = self.steps(), ("Concatenate", 2 if part.transposed else 1)
        if steps == [_MERGED] and len(lists) == 1:
            return replace(part, name=lists[0][part.expert], expert=None)
        if steps == [_MERGED, joined] and len(lists) == 2 and part.rows and part.rows.step is None:
            gate, up = (self.stored[pattern] for pattern in self.converter.source_patterns)
            names = up if part.rows.start else gate
            return Part(names[part.expert], transposed=part.transposed)
        return None


def _sources(
    stored_names: Iterable[str], model: PreTrainedModel, names: set[str]
) -> dict[str, _Source]:
    """Return what each of ``names``, tensors of the model as transformers builds it, is made of."""
    conversions = get_model_conversion_mapping(model)
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in conversions if not isinstance(entry, WeightConverter)]
    prefix = f"{model.base_model_prefix}."
    sources: dict[str, _Source] = {}
    # In the order of transformers, in which experts are merged; of two names the first counts.
    for stored in sorted(stored_names, key=dot_natural_key):
        renamed, converter, pattern = _renamed(stored, renamings, converters)
        if (name := _among(names, renamed, prefix)) is None:
            name, converter, pattern = _among(names, stored, prefix), None, None
        if name is None:
            continue
        source = sources.setdefault(name, _Source(converter, {}))
        if not source.stored or (source.converter and converter):
            source.stored.setdefault(pattern, []).append(stored)
        # What is split into several: all of them come from it, in a way that is not followed.
        targets = converter.target_patterns if converter else []
        for target in targets[1:]:
            if (other := name.replace(targets[0], target)) in names - sources.keys():
                sources[other] = source
    return sources


def _renamed(
    name: str, renamings: Iterable[Any], converters: Iterable[Any]
) -> tuple[str, Any, str | None]:
    """Return the name that transformers gives a stored tensor, and the converter that takes it."""
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    for converter in converters:
        name, pattern = converter.rename_source_key(name)
        if pattern is not None:
            return name, converter, pattern
    return name, None, None


def _among(names: set[str], name: str, prefix: str) -> str | None:
    """Return ``name`` as the model has it; checkpoints saved from a base model lack the prefix."""
    candidates = (name.removeprefix(prefix), prefix + name, name)
    return next((candidate for candidate in candidates if candidate in names), None)
