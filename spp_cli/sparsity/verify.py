"""Is it sparse, and where it should be? The record beside a model, and a check of any folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spp_cli.errors import ModelError, SppError
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.decoder import Decoder
from spp_cli.models.loading import empty_model
from spp_cli.models.prunable import EXCLUDED
from spp_cli.models.stored import StoredTensors, starred
from spp_cli.reading import read_json
from spp_cli.sparsity.masks import FILE_NAME as MASKS
from spp_cli.sparsity.masks import KeepMasks
from spp_cli.sparsity.patterns import Pattern, Unstructured, parse_pattern

__all__ = [
    "RECORD",
    "LayerReport",
    "VerifyReport",
    "recorded_blocks",
    "recorded_pattern",
    "verify_folder",
    "write_sparsity_record",
]

RECORD = "spp_sparsity.json"


@dataclass(frozen=True)
class LayerReport:
    """One linear: the share of zeros, groups that hold too many, pruned weights that are filled."""

    name: str
    shape: tuple[int, int]
    sparsity: float
    violations: int
    filled: int


@dataclass(frozen=True)
class VerifyReport:
    """All linears of a folder, and what they were checked against."""

    folder: str
    pattern: str | None
    masks: bool
    layers: tuple[LayerReport, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not self.problems

    def summary(self) -> str:
        """Return the first problem and how many more there are, on one line; empty if none."""
        more = len(self.problems) - 1
        others = f"; and {more} more like it, see the table" if more > 0 else ""
        return f"{self.problems[0]}{others}" if self.problems else ""

    @property
    def sparsity(self) -> float:
        """Share of zeros over all linears in decoder blocks, 0 to 1."""
        sizes = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        zeros = sum(layer.sparsity * size for layer, size in zip(self.layers, sizes, strict=True))
        return zeros / sum(sizes)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {**asdict(self), "ok": self.ok, "sparsity": self.sparsity}


def write_sparsity_record(
    folder: Path,
    pattern: str,
    packed: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    digest: str,
    blocks: Mapping[str, Any],
) -> dict[str, Any]:
    """Write spp_sparsity.json: pattern, density of each linear, mask digest, what stays dense.

    ``blocks`` has ``block_weights``, how many weights the decoder blocks have in all, and
    ``dense``, the matrices among them that were not pruned; see ``Prunable.described``.

    Returns:
        What is to be told of it: both of these, ``sparsity``, the share of zeros in the pruned
        linears, and ``block_sparsity``, that in all weights of the blocks, 0 to 1.
    """
    kept = {name: count_bits(bits) for name, bits in packed.items()}
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    zeros = sum(sizes.values()) - sum(kept.values())
    figures: dict[str, Any] = {"sparsity": zeros / sum(sizes.values())}
    if blocks:
        figures |= {"block_sparsity": zeros / blocks["block_weights"], **blocks}
    record = {
        "format": 1,
        "pattern": pattern,
        **figures,
        "mask_digest": digest,
        "density": {name: kept[name] / sizes[name] for name in packed},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return figures


def recorded_blocks(folder: Path) -> dict[str, Any]:
    """Return what the record beside a model says of its decoder blocks; empty if it says nothing.

    That is what ``write_sparsity_record`` takes as ``blocks``.
    """
    record = read_json(folder / RECORD)
    return {key: record[key] for key in ("block_weights", "dense") if key in record}


def verify_folder(
    path: str | Path, pattern: str | None = None, *, trust_remote_code: bool = False
) -> VerifyReport:
    """Check every linear in the decoder blocks of a Hugging Face folder.

    Against ``pattern`` ("2:4") if it is given, else against what spp recorded beside the model;
    and against the keep masks if they are there: no pruned weight may be filled. Without masks the
    record still says how many weights of a layer may be non-zero. A folder that has neither is
    only measured. That no tensor of the model holds NaN or infinity is checked in any folder.

    Raises:
        ModelError: not a readable checkpoint of a decoder-only model.
        ConfigError: ``pattern`` is none.
    """
    checkpoint = Checkpoint(path)
    model = empty_model(checkpoint, trust_remote_code=trust_remote_code)
    masks = KeepMasks(checkpoint.folder) if (checkpoint.folder / MASKS).exists() else None
    record = _read_record(checkpoint.folder)
    recorded = None if record is None else record.pattern
    wanted = parse_pattern(pattern) if pattern else recorded
    pruned = {*(masks or ()), *(record.density if record else ())}
    stored = StoredTensors(checkpoint, model)
    layers, not_finite = [], []
    others = {name for name in checkpoint.locations if stored.is_of_the_model(name)}
    for linear in Decoder(model).all_linears():
        others.discard(stored.part(f"{linear.name}.weight").name)
        weight = linear.as_stored(stored.read(f"{linear.name}.weight"))
        not_finite += _not_finite(linear.name, weight)
        zeros = weight == 0
        # A layer left out of pruning is held to a pattern only if that is asked for, and one that
        # cannot be pruned never.
        asked = pattern and starred(f"{linear.name}.weight") not in (record.never if record else ())
        held_to = wanted if asked or linear.name in pruned else None
        filled = _filled(linear.name, zeros, masks, record)
        layers.append(_report(linear.name, zeros, held_to, filled))
    problems = [problem for layer in layers for problem in _problems_of(layer, wanted)]
    problems += not_finite
    for name in sorted(others):
        problems += _not_finite(name, checkpoint.tensor(name))
    if strangers := sorted(pruned - {layer.name for layer in layers}):
        problems.append(
            f"{strangers[0]} was pruned, says the record, and is no linear layer of this model"
        )
    if masks is not None and not masks.is_intact():
        problems.append(f"{MASKS}: its digest is not the one recorded; the file was changed")
    elif masks is not None and record is not None and masks.digest != record.mask_digest:
        problems.append(f"{MASKS}: these are not the masks that {RECORD} was written for")
    shown = None if wanted is None else str(wanted)
    return VerifyReport(str(path), shown, masks is not None, tuple(layers), tuple(problems))


def _filled(name: str, zeros: Tensor, masks: KeepMasks | None, record: _Record | None) -> int:
    """Return how many pruned weights of a layer are not zero, as far as is known."""
    if masks is not None and name in masks:
        keep = masks[name]
        if keep.shape != zeros.shape:
            raise ModelError(
                f"the mask of {name} is {tuple(keep.shape)}, and its weight {tuple(zeros.shape)}. "
                "Copy the folder anew, or prune again"
            )
        return int((~(zeros | keep)).sum())
    if record is not None and name in record.density:
        may_stay = round(record.density[name] * zeros.numel())
        return max(0, zeros.numel() - int(zeros.sum()) - may_stay)
    return 0


def _report(name: str, zeros: Tensor, pattern: Pattern | None, filled: int) -> LayerReport:
    rows, columns = zeros.shape
    violations = 0
    if pattern is not None:
        fits = pattern.misfit(columns) is None
        violations = pattern.violations(zeros) if fits else rows
    sparsity = int(zeros.sum()) / zeros.numel()
    return LayerReport(name, (rows, columns), sparsity, violations, filled)


def _problems_of(layer: LayerReport, pattern: Pattern | None) -> list[str]:
    problems = []
    if layer.violations:
        problems.append(f"{layer.name}: {layer.violations} groups violate {pattern}")
    if layer.filled:
        problems.append(f"{layer.name}: {layer.filled} pruned weights are not zero")
    return problems


def _not_finite(name: str, tensor: Tensor) -> list[str]:
    count = int((~tensor.isfinite()).sum())
    return [f"{name}: {count} values are NaN or infinity"] * bool(count)


@dataclass(frozen=True)
class _Record:
    """What spp_sparsity.json says: the pattern, the share that stays of each pruned layer.

    ``never``: the matrices that cannot be pruned, with ``*`` for numbers.
    """

    pattern: Pattern
    density: Mapping[str, float]
    mask_digest: str
    never: frozenset[str]


def _read_record(folder: Path) -> _Record | None:
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = read_json(path)
        pattern = str(record["pattern"])
        density = {str(name): float(share) for name, share in record["density"].items()}
        kind, _, share = pattern.partition(" ")
        known = Unstructured(float(share)) if kind == "unstructured" else parse_pattern(pattern)
        dense = record.get("dense", {}).items()
        never = frozenset(name for name, entry in dense if entry["why"] != EXCLUDED)
        return _Record(known, density, str(record["mask_digest"]), never)
    except (SppError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is corrupt: {error}. Copy it anew, or prune again") from error


def recorded_pattern(folder: Path) -> Pattern | None:
    """Return the pattern that spp recorded beside a model; None if there is no record.

    Raises:
        ModelError: the record is corrupt.
    """
    record = _read_record(folder)
    return None if record is None else record.pattern


def count_bits(packed: Tensor) -> int:
    counts = torch.tensor([bin(byte).count("1") for byte in range(256)])
    return int(counts[packed.long()].sum())
