"""Print what scripts/league.sh found, and draw it, from the manifests of its runs.

    python scripts/league_table.py WORKSPACE

Tables in Markdown: perplexity before and after the finetune, accuracy, time and memory. The plot
goes beside the runs, as league.svg and league.png. Runs that are not done yet are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spp_cli.reporting.figures import COLOURS, INK, MARKERS, Plot, save

AMOUNTS = ("50 %", "60 %", "70 %", "75 %", "2:4", "4:8", "2:8")


@dataclass(frozen=True)
class Entry:
    """One run: how it was pruned, to what, and what came of it."""

    way: str
    amount: str
    pruned: Mapping[str, Any]  # the manifest
    results: Mapping[str, Any]

    def measured(self, model: str, task: str, key: str) -> float:
        """Return a number of ``model``, "dense", "prune" or "merge"."""
        of_tasks = self.results["models"][model]["results"]
        return float(next(found[key] for name, found in of_tasks.items() if task in name))

    def perplexity(self, model: str) -> float:
        return self.measured(model, "perplexity", "perplexity")


def entry(folder: Path) -> Entry:
    pruned = json.loads((folder / "prune" / "manifest.json").read_bytes())
    results = json.loads((folder / "eval" / "results.json").read_bytes())
    how = pruned["settings"]["prune"]
    parts = [how[key]["name"] for key in ("method", "refine", "recover", "allocation")]
    if how["method"].get("permute"):
        parts[0] += ", permuted"
    way = " + ".join(part for part in parts if part not in ("none", "uniform"))
    pattern = how["pattern"]
    amount = f"{how['sparsity']:.0%}".replace("%", " %") if pattern == "unstructured" else pattern
    return Entry(way, amount, pruned, results)


def table(entries: list[Entry], cell: Callable[[Entry], str]) -> str:
    """Return a row for each way to prune and a column for each amount, in Markdown."""
    cells = {(each.way, each.amount): cell(each) for each in entries}
    amounts = [amount for amount in AMOUNTS if any(amount == at for _, at in cells)]
    ways = dict.fromkeys(way for way, _ in cells)
    lines = [f"| | {' | '.join(amounts)} |", f"|---{'|---' * len(amounts)}|"]
    for way in ways:
        lines.append(f"| {way} | {' | '.join(cells.get((way, at), '') for at in amounts)} |")
    return "\n".join(lines)


def plot(entries: list[Entry]) -> Plot:
    """Return perplexity against sparsity, a line for each way to prune: before, and after."""
    ways = list(dict.fromkeys(each.way for each in entries))
    sparse = [each for each in entries if each.amount.endswith("%")]
    dense = entries[0].perplexity("dense")

    def draw(figure: Any) -> None:
        from matplotlib.ticker import NullFormatter, ScalarFormatter

        halves = figure.subplots(1, 2, sharey=True)
        for axis, model, title in zip(
            halves, ("prune", "merge"), ("pruned", "and finetuned"), strict=True
        ):
            axis.set(yscale="log", title=title, xlabel="sparsity, %")
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set_yticks([20, 25, 30, 40, 60, 100, 200, 400])
            axis.grid(axis="y")
            axis.axhline(dense, color=INK, linestyle="--", linewidth=1)
            for number, way in enumerate(ways):
                found = sorted(
                    (float(each.amount.split()[0]), each.perplexity(model))
                    for each in sparse
                    if each.way == way
                )
                if found:
                    axis.plot(
                        *zip(*found, strict=True),
                        label=way if model == "prune" else None,
                        color=COLOURS[number % len(COLOURS)],
                        marker=MARKERS[number % len(MARKERS)],
                    )
        halves[0].set_ylabel("perplexity")
        figure.legend(loc="outside lower left", ncols=3)

    size = (7.2, 3.4 + 0.2 * -(-len(ways) // 3))
    return Plot("league", "The league", "The dashed line is the dense model.", draw, size)


def main() -> None:
    root = Path(sys.argv[1])
    done = [path.parents[1] for path in root.glob("*/eval/results.json")]
    order = {run.name: run.stat().st_mtime for run in done}
    entries = [entry(run) for run in sorted(done, key=lambda run: order[run.name])]
    digests = {each.pruned["metrics"]["calibration"]["digest"] for each in entries
               if each.pruned["metrics"]["calibration"]}  # fmt: skip
    print(f"{len(entries)} runs, calibration {', '.join(sorted(digests))[:16]}\n")
    for title, cell in (
        (
            "Perplexity, pruned → finetuned",
            lambda each: f"{each.perplexity('prune'):.2f} → {each.perplexity('merge'):.2f}",
        ),
        (
            "next-line, pruned → finetuned",
            lambda each: " → ".join(
                f"{each.measured(model, 'next-line', 'acc'):.3f}" for model in ("prune", "merge")
            ),
        ),
        (
            "Seconds to prune, peak MiB",
            lambda each: (
                f"{each.pruned['seconds']:.0f} s, {each.pruned['peak_memory_bytes'] / 2**20:.0f}"
            ),
        ),
    ):
        print(f"{title}:\n\n{table(entries, cell)}\n")
    for suffix in ("svg", "png"):
        save(plot(entries), root / f"league.{suffix}")


if __name__ == "__main__":
    main()
