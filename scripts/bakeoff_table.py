"""Print what scripts/bakeoff.sh found: a line for each adapter, from the manifests of its run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = (
    "adapter", "rate", "trainable", "finetuned", "merged", "recovered", "s a step", "memory",
)  # fmt: skip


def perplexity(models: dict[str, Any], name: str) -> float:
    results = models[name]["results"]
    return float(next(value for key, value in results.items() if "perplexity" in key)["perplexity"])


def line(folder: Path) -> tuple[str, ...]:
    manifest = json.loads((folder / "finetune" / "manifest.json").read_bytes())
    evaluated = json.loads((folder / "eval" / "results.json").read_bytes())
    metrics = manifest["metrics"]
    share = next(iter(evaluated["recovered"]["merge"].values()))
    return (
        folder.name,
        f"{json.loads((folder / 'find-lr.json').read_bytes())['best']['learning_rate']:g}",
        f"{metrics['trainable_parameters']:,}",
        f"{perplexity(evaluated['models'], 'finetune'):.2f}",
        f"{perplexity(evaluated['models'], 'merge'):.2f}",
        "–" if share is None else f"{share:.0%}",
        f"{manifest['seconds'] / metrics['steps']:.2f}",
        f"{manifest['peak_memory_bytes'] / 2**20:.0f} MiB",
    )


def main() -> None:
    root, *adapters = sys.argv[1:]
    rows = [COLUMNS, *(line(Path(root) / adapter) for adapter in adapters)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, strict=True)
        print("  ".join(f"{cell:>{width}}" for cell, width in cells))


if __name__ == "__main__":
    main()
