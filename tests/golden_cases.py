"""The golden layers, loaded; see golden/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from spp_cli.sparsity.patterns import NofM, Pattern, Unstructured

FOLDER = Path(__file__).parent / "golden"
LAYERS = ("layer_16x32", "layer_48x256")


def layer(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def case(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return loaded


def pruned_cases(method: str) -> list[tuple[str, str, Pattern]]:
    """Return (layer, key, pattern) for each expected result of ``method``."""
    cases: list[tuple[str, str, Pattern]] = []
    for name in LAYERS:
        for key in layer(name):
            if key.startswith(f"{method}_unstructured_"):
                cases.append((name, key, Unstructured(float(key.rpartition("_")[2]))))
            elif key.startswith(f"{method}_") and "of" in key:
                kept, _, of = key.rpartition("_")[2].partition("of")
                cases.append((name, key, NofM(int(kept), int(of))))
    return cases
