"""What of its settings decides a stage's result: one row a stage.

A key without effect changes no result in exact arithmetic: where things are held, how often they
are written down, how many rows are looked at together. What it changes is memory and time, and of
a sum the order, so that results may differ by rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

__all__ = ["STAGE_FACTS", "StageFacts", "deciding", "reads_seed"]


@dataclass(frozen=True)
class StageFacts:
    """``keys_without_effect`` are dotted, below the stage's section.

    Of ``keys_by_product`` only the product counts.
    """

    reads_seed: bool
    keys_without_effect: tuple[str, ...] = ()
    keys_by_product: tuple[str, ...] = ()


STAGE_FACTS = {
    # What pruning draws has a seed of its own: the calibration's, or one that is fixed.
    "prune": StageFacts(False, ("offload", "calibration.batch_size")),
    "finetune": StageFacts(
        True,
        (
            "base_storage",
            "gradient_checkpointing",
            "checkpoint_every",
            "check_mask_every",
            "report_to",
        ),
        ("batch_size", "gradient_accumulation_steps"),
    ),
    "merge": StageFacts(True),  # of the text on which adapter and merged model are compared
    "eval": StageFacts(False, ("batch_size",)),  # tasks have seeds of their own
}


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings, by section, without the keys that decide nothing.

    Keys of which the product counts are replaced by it: "batch_size × …".
    """
    return {
        section: _of_stage(STAGE_FACTS[section], values)
        if section in STAGE_FACTS and isinstance(values, Mapping)
        else values
        for section, values in settings.items()
    }


def reads_seed(settings: Mapping[str, Any]) -> bool:
    """Whether the seed decides what comes of ``settings``: not if they are of a stage without."""
    stages = [STAGE_FACTS[section] for section in settings if section in STAGE_FACTS]
    return not stages or any(stage.reads_seed for stage in stages)


def _of_stage(facts: StageFacts, values: Mapping[str, Any]) -> dict[str, Any]:
    kept = dict(values)
    for dotted in facts.keys_without_effect:
        kept = _without(kept, dotted.split("."))
    factors = [kept.get(key) for key in facts.keys_by_product]
    if factors and all(isinstance(factor, int) for factor in factors):
        kept = {key: value for key, value in kept.items() if key not in facts.keys_by_product}
        kept[" × ".join(facts.keys_by_product)] = prod(factors)
    return kept


def _without(values: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    first, *rest = keys
    kept = dict(values)
    if rest and isinstance(kept.get(first), Mapping):
        kept[first] = _without(kept[first], rest)
    elif not rest:
        kept.pop(first, None)
    return kept
