"""The plots of a report, each from plain values; ``figures`` draws them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from spp_cli.reporting.figures import COLOURS, INK, MARKERS, Plot
from spp_cli.reporting.loss_plot import losses_plot, validations_plot
from spp_cli.reporting.tables import TITLES

__all__ = [
    "common_plots",
    "grid",
    "heat_plot",
    "histogram_plot",
    "pareto_front",
    "pareto_plot",
    "run_plots",
    "stages_plot",
]

_NUMBERED_UP_TO = 12  # blocks; cells of more are too small for figures in them
_NOT_A_NUMBER = float("nan")
_ERRORS = "By decoder block and kind of layer, right after pruning; 0 is the dense model's output."
_ZEROS = "By decoder block and kind of layer; of experts the mean."


def run_plots(run: Mapping[str, Any]) -> list[Plot]:
    """Return the plots of one run of ``spp_cli.report.gather``; those for which it has the records.

    Besides what is gathered it may have a ``histogram``, see ``histogram_plot``.
    """
    name, plots = run["run"], []
    if len([entry for entry in run["log"] if "loss" in entry]) > 1:
        plots.append(losses_plot(run["log"], f"{name}-loss"))
    for key, title, unit, caption in (
        ("output_error", "Error of each layer's output", "relative error", _ERRORS),
        ("sparsity", "Zeros by layer", "share of zeros", _ZEROS),
    ):
        figures = {layer: row[key] for layer, row in run["layers"].items() if key in row}
        if figures:
            plots.append(heat_plot(f"{name}-{key}", title, unit, caption, figures))
    if run["histogram"]:
        plots.append(histogram_plot(f"{name}-weights", run["histogram"]))
    if any(row.get("seconds") is not None for row in run["status"]["stages"].values()):
        plots.append(stages_plot(f"{name}-stages", run["status"]["stages"]))
    return plots


def common_plots(
    runs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[Plot]:
    """Return the plots of several runs together; ``rows`` are those of ``comparison.rows``."""
    logs = {run["run"]: run["log"] for run in runs if run["log"]}
    measured = _points(rows, _most_measured(rows))
    plots = [pareto_plot(rows)] if any(way for way, _ in measured) else []
    return plots + ([validations_plot(logs)] if len(logs) > 1 else [])


def grid(figures: Mapping[str, float]) -> tuple[list[str], list[str], list[list[float]]]:
    """Return kinds of layers, blocks, and the mean of each kind in each block; NaN if it has none.

    ``figures`` has one number a layer by its name, such as model.layers.3.mlp.experts.0.up_proj:
    block 3, kind mlp.experts.*.up_proj, of which there are as many as experts.
    """
    cells: dict[tuple[str, str], list[float]] = {}
    for name, figure in figures.items():
        before, _, after = re.sub(r"\.([0-9]+)\.", "\n\\1\n", name, count=1).partition("\n")
        block, _, kind = after.partition("\n")
        kind = re.sub(r"(^|\.)[0-9]+(?=\.|$)", r"\1*", kind) or before
        cells.setdefault((kind, block), []).append(figure)
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    blocks = list(dict.fromkeys(block for _, block in cells))
    return kinds, blocks, [[_mean(cells.get((kind, block))) for block in blocks] for kind in kinds]


def _mean(numbers: Sequence[float] | None) -> float:
    return sum(numbers) / len(numbers) if numbers else _NOT_A_NUMBER


def heat_plot(name: str, title: str, unit: str, caption: str, figures: Mapping[str, float]) -> Plot:
    """Return a heat map of one number a layer: decoder blocks across, kinds of layers down."""
    kinds, blocks, values = grid(figures)
    known = [value for row in values for value in row if value == value]
    low, high = min(known), max(known)
    if high - low < 0.01:  # all but equal: shades would make much of nothing
        low, high = low - 0.05, high + 0.05

    def draw(figure: Any) -> None:
        axis = figure.add_subplot(xlabel="decoder block")
        mesh = axis.pcolormesh(values, cmap="cividis", vmin=low, vmax=high, edgecolors="none")
        axis.invert_yaxis()
        axis.spines[:].set_visible(False)
        axis.set_yticks([row + 0.5 for row in range(len(kinds))], kinds)
        every = -(-len(blocks) // 12)
        shown = range(0, len(blocks), every)
        axis.set_xticks([column + 0.5 for column in shown], [blocks[column] for column in shown])
        axis.tick_params(length=0)
        bar = figure.colorbar(mesh, label=unit, aspect=30)
        bar.outline.set_visible(False)
        if len(blocks) > _NUMBERED_UP_TO:
            return
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                if value == value:
                    on = "black" if (value - low) / (high - low) > 0.5 else "white"
                    place = (column + 0.5, row + 0.5)
                    axis.text(*place, f"{value:.2f}", color=on, ha="center", va="center", size=8)

    return Plot(name, title, caption, draw, (5.4, max(2.2, 1 + 0.28 * len(kinds))))


def histogram_plot(name: str, histogram: Mapping[str, Any]) -> Plot:
    """Return the non-zero weights of a layer before and after, as outlines.

    ``histogram`` has ``layers`` (names), ``edges`` of the bins, ``counts`` by stage, one list each,
    and ``zeros``, the share of weights that are zero, by stage.
    """

    def draw(figure: Any) -> None:
        axis = figure.add_subplot(xlabel="weight", ylabel="weights in a bin")
        looks = zip(histogram["counts"].items(), COLOURS, ("-", "-", "--"), strict=False)
        for (stage, counts), colour, line in looks:
            label = f"{TITLES[stage]}, {histogram['zeros'][stage]:.1%} zeros"
            fill = stage == "dense"
            axis.stairs(
                counts, histogram["edges"], color=colour, linestyle=line, label=label, linewidth=1.4
            )
            if fill:
                axis.stairs(counts, histogram["edges"], color=colour, alpha=0.15, fill=True)
        figure.legend(loc="outside lower left", ncols=2)

    layers = histogram["layers"]
    what = layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} more"
    caption = f"{what}. Zeros are not drawn; weights beyond the ends, four times the root mean "
    caption += "square of the dense ones, are not either."
    return Plot(name, "Weights before and after", caption, draw)


def stages_plot(name: str, stages: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Return what each finished stage took: seconds and bytes, as bars side by side."""
    done = {stage: row for stage, row in stages.items() if row.get("seconds") is not None}
    longest = max(row["seconds"] for row in done.values())
    unit, seconds = next(
        (item for item in (("hours", 3600), ("minutes", 60)) if longest >= 2 * item[1]),
        ("seconds", 1),
    )
    memory = {stage: (row["peak_memory_bytes"] or 0) / 2**30 for stage, row in done.items()}

    def draw(figure: Any) -> None:
        halves = figure.subplots(1, 2, sharey=True)
        times = {stage: row["seconds"] / seconds for stage, row in done.items()}
        for axis, bars, colour, label in (
            (halves[0], times, COLOURS[0], f"time ({unit})"),
            (halves[1], memory, COLOURS[1], "peak memory (GiB)"),
        ):
            drawn = axis.barh(list(bars), list(bars.values()), color=colour, height=0.6)
            axis.bar_label(drawn, fmt="%.3g", padding=3)
            axis.set_xlabel(label)
            axis.margins(x=0.2)
            axis.tick_params(axis="y", length=0)
        halves[0].invert_yaxis()

    caption = "Memory is the most that the process has held up to the end of the stage."
    return Plot(name, "Time and memory by stage", caption, draw, (5.4, 1.2 + 0.32 * len(done)))


Point = tuple[float, float]  # sparsity, perplexity


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats: as many zeros or more, at a perplexity as low or less.

    In the order of their sparsity.
    """
    front: list[Point] = []
    for point in sorted(set(points), key=lambda point: (-point[0], point[1])):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front[::-1]


def pareto_plot(rows: Sequence[Mapping[str, Any]]) -> Plot:
    """Return perplexity against sparsity, a line for each way to prune, and one to finetune it.

    ``rows`` are those of ``comparison.rows``; drawn is the perplexity that most of them have, of
    the models that can be compared by it.
    """
    measured = _most_measured(rows)
    points = _points(rows, measured)
    dense = [perplexity for _, perplexity in points.pop(("", ""), [])]
    ways = list(dict.fromkeys(way for way, _ in points))

    def draw(figure: Any) -> None:
        axis = figure.add_subplot(xlabel="sparsity of the pruned layers", ylabel=measured)
        axis.grid(axis="y")
        _scale_by_ratios(axis)
        for perplexity in dense[:1]:
            axis.axhline(perplexity, color=INK, linestyle="--", linewidth=1, label="dense")
        for (way, adapter), found in points.items():
            style = {
                "color": COLOURS[ways.index(way) % len(COLOURS)],
                "marker": MARKERS[ways.index(way) % len(MARKERS)],
                "markerfacecolor": None if adapter else "none",
            }
            axis.plot(*zip(*found, strict=True), **{**style, "linestyle": "none"})
            lowest = dict(sorted(found, reverse=True))  # of those at one sparsity
            line = {**style, "linestyle": "-" if adapter else ":"}
            label = " + ".join(filter(None, (way, adapter)))
            axis.plot(*zip(*sorted(lowest.items()), strict=True), label=label, **line)
        front = pareto_front([point for found in points.values() for point in found])
        wide = {"color": INK, "linewidth": 7, "alpha": 0.25, "solid_capstyle": "round"}
        axis.plot(*zip(*front, strict=True), zorder=0.5, label="Pareto front", **wide)
        figure.legend(loc="outside lower left", ncols=2)

    caption = "Pruned alone, hollow and dotted, and finetuned; the scale is logarithmic. No model "
    caption += "has more zeros at a lower perplexity than those on the Pareto front."
    size = (5.4, 3.1 + 0.2 * -(-(len(points) + 2) // 2))
    return Plot("pareto", "Perplexity against sparsity", caption, draw, size)


def _scale_by_ratios(axis: Any) -> None:
    """Make the scale of y logarithmic, with plain numbers beside it, within a decade too."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_locator(NullLocator())


def _most_measured(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of the perplexity that most rows have; "" if none has one."""
    names = [name for row in rows for name in row["perplexity"]]
    return max(dict.fromkeys(names), key=names.count, default="")


def _points(rows: Sequence[Mapping[str, Any]], measured: str) -> dict[tuple[str, str], list[Point]]:
    """Return sparsity, to 0.1 %, and perplexity by way of pruning and adapter; "" where none is."""
    points: dict[tuple[str, str], list[Point]] = {}
    for row in rows:
        concerned = [
            why.startswith(("model", "perplexity:", measured)) for why in row["incomparable"]
        ]
        if measured not in row["perplexity"] or any(concerned):
            continue
        further = [row[key] for key in ("refine", "recover", "allocation")]
        pattern = row["pattern"] if row["pattern"] != "unstructured" else None
        parts = [row["method"], pattern, *(x for x in further if x not in ("none", "uniform"))]
        way = "" if row["stage"] == "dense" else " ".join(filter(None, parts))
        adapter = "" if row["stage"] in ("dense", "prune") else row["adapter"] or "finetuned"
        # A weight more or less that a method drops to round is no merit.
        point = (round(row["sparsity"] or 0.0, 3), row["perplexity"][measured]["perplexity"])
        points.setdefault((way, adapter), []).append(point)
    return points
