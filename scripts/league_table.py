"""Print what scripts/league.sh found, and draw it, from the manifests of its runs.

    python scripts/league_table.py WORKSPACE

Tables in Markdown: perplexity before and after the finetune, accuracy, time and memory. The plot
goes beside the runs, as league.svg and league.png. Runs that are not done yet are left out.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spp_cli.reporting.figures import COLOURS, INK, Plot, save

AMOUNTS = ("50 %", "60 %", "70 %", "75 %", "2:4", "4:8", "2:8")
SHARES = ("uniform", "owl", "sensitivity")
DRAWN = ("50 %", "2:4", "75 %")  # the others are in the tables
_WIDTH = 5.0  # times the dense perplexity: what is drawn
_TICKS = (20, 22, 25, 30, 35, 40, 50, 70, 100)


@dataclass(frozen=True)
class Entry:
    """One run: how it was pruned, to what, how that was shared out, and what came of it."""

    way: str
    amount: str
    shares: str
    pruned: Mapping[str, Any]  # the manifest of the prune stage
    measured: Mapping[str, Any]  # the metrics of the eval stage

    @property
    def peak_memory(self) -> int:
        """Peak memory of the process that pruned, in bytes."""
        return int(self.pruned["peak_memory_bytes"])

    def metric(self, model: str, task: str) -> float:
        """Return what a task found of ``model``, "dense", "prune" or "merge"."""
        return float(next(v for name, v in self.measured[model].items() if name.startswith(task)))

    def perplexity(self, model: str) -> float:
        return self.metric(model, "perplexity@")


def entry(folder: Path) -> Entry:
    pruned = json.loads((folder / "prune" / "manifest.json").read_bytes())
    measured = json.loads((folder / "eval" / "manifest.json").read_bytes())
    how = pruned["settings"]["prune"]
    parts = [how[key]["name"] for key in ("method", "refine", "recover")]
    if how["method"].get("permute"):
        parts[0] += ", permuted"
    way = " + ".join(part for part in parts if part != "none")
    pattern = how["pattern"]
    amount = f"{how['sparsity']:.0%}".replace("%", " %") if pattern == "unstructured" else pattern
    return Entry(way, amount, how["allocation"]["name"], pruned, measured["metrics"])


def ranked(entries: list[Entry]) -> list[Entry]:
    """Return the entries by their ways: first that which is furthest below the mean of its columns.

    A column is an amount, its mean that of the logarithms of the perplexities of the pruned models.
    """
    columns: dict[str, list[float]] = {}
    for each in entries:
        columns.setdefault(each.amount, []).append(math.log(each.perplexity("prune")))
    ways: dict[str, list[float]] = {}
    for each in entries:
        above = math.log(each.perplexity("prune")) - statistics.mean(columns[each.amount])
        ways.setdefault(each.way, []).append(above)
    return sorted(entries, key=lambda each: (statistics.mean(ways[each.way]), each.way))


def table(entries: list[Entry], cell: Callable[[Entry], str]) -> str:
    """Return a row for each way to prune and a column for each amount, in Markdown."""
    cells = {(each.way, each.amount): cell(each) for each in entries}
    amounts = [amount for amount in AMOUNTS if any(amount == at for _, at in cells)]
    ways = dict.fromkeys(way for way, _ in cells)
    lines = [f"| | {' | '.join(amounts)} |", f"|---{'|---' * len(amounts)}|"]
    for way in ways:
        lines.append(f"| {way} | {' | '.join(cells.get((way, at), '') for at in amounts)} |")
    return "\n".join(lines)


def by_shares(entries: list[Entry], model: str) -> str:
    """Return a table whose cells have the perplexities of ``model`` by each of ``SHARES``."""
    found = {(each.way, each.amount, each.shares): each.perplexity(model) for each in entries}
    shared = {(each.way, each.amount) for each in entries if each.shares != SHARES[0]}

    def cell(each: Entry) -> str:
        values = [found.get((each.way, each.amount, shares)) for shares in SHARES]
        return " / ".join("–" if value is None else f"{value:.2f}" for value in values)

    return table([each for each in entries if (each.way, each.amount) in shared], cell)


def plot(entries: list[Entry]) -> Plot:
    """Return a row for each way to prune, with perplexity pruned (ring) and finetuned (dot)."""
    ways = list(dict.fromkeys(each.way for each in entries))
    amounts = [at for at in DRAWN if any(each.amount == at for each in entries)]
    dense = entries[0].perplexity("dense")

    def draw(figure: Any) -> None:
        from matplotlib.ticker import NullFormatter, ScalarFormatter

        row = figure.subplots(1, len(amounts), sharey=True, squeeze=False)[0]
        row[0].set_yticks(range(len(ways)), ways)
        row[0].invert_yaxis()
        for axis, amount in zip(row, amounts, strict=True):
            here = [each for each in entries if each.amount == amount]
            most = min(_WIDTH * dense, max(each.perplexity("prune") for each in here))
            axis.set(xscale="log", xlim=(0.98 * dense, 1.03 * most), title=amount)
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_xticks(
                [at for at in _TICKS if at < most and (most < 2 * dense or at % 10 == 0)]
            )
            axis.set_xticks([], minor=True)
            axis.grid(axis="y")
            axis.axvline(dense, color=INK, linestyle="--", linewidth=1)
            for each in here:
                at = ways.index(each.way)
                pruned, merged = each.perplexity("prune"), each.perplexity("merge")
                axis.plot([min(merged, most), min(pruned, most)], [at, at], color=INK, linewidth=1)
                for value, colour, filled in (
                    (pruned, COLOURS[1], "none"),
                    (merged, COLOURS[0], "full"),
                ):
                    marker = "o" if value <= most else ">"
                    axis.plot(min(value, most), at, marker, color=colour, fillstyle=filled)
        row[len(row) // 2].set_xlabel("perplexity: pruned (ring), and finetuned (dot)")

    caption = "The dashed line is the dense model; an arrowhead lies further out."
    return Plot("league", "The league", caption, draw, (8.4, 1.2 + 0.24 * len(ways)))


def main() -> None:
    root = Path(sys.argv[1])
    all_runs = [entry(path.parents[1]) for path in root.glob("*/eval/manifest.json")]
    entries = ranked([each for each in all_runs if each.shares == SHARES[0]])
    digests = {each.pruned["metrics"]["calibration"]["digest"] for each in all_runs
               if each.pruned["metrics"]["calibration"]}  # fmt: skip
    print(f"{len(all_runs)} runs, calibration {', '.join(sorted(digests))[:16]}\n")
    for title, cell in (
        (
            "Perplexity, pruned → finetuned",
            lambda each: f"{each.perplexity('prune'):.2f} → {each.perplexity('merge'):.2f}",
        ),
        (
            "next-line, pruned → finetuned",
            lambda each: " → ".join(
                f"{each.metric(model, 'next-line'):.3f}" for model in ("prune", "merge")
            ),
        ),
        (
            "Time to prune, peak memory",
            lambda each: f"{each.pruned['seconds']:.0f} s, {each.peak_memory / 2**20:.0f} MiB",
        ),
    ):
        print(f"{title}:\n\n{table(entries, cell)}\n")
    order = list(dict.fromkeys(each.way for each in entries))
    all_runs.sort(key=lambda each: order.index(each.way))
    for title, model in (("Pruned", "prune"), ("Finetuned", "merge")):
        print(f"{title}, {' / '.join(SHARES)}:\n\n{by_shares(all_runs, model)}\n")
    for suffix in ("svg", "png"):
        save(plot(entries), root / f"league.{suffix}")


if __name__ == "__main__":
    main()
