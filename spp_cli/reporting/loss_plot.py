"""The losses of finetunings as a plot, from the logs that they left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spp_cli.reporting.figures import COLOURS, INK, MARKERS, Plot, save

__all__ = ["draw_losses", "losses_plot", "read_log", "validations_plot"]

Entries = Sequence[Mapping[str, Any]]


def read_log(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log.jsonl, in order."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def draw_losses(log: Path, picture: Path) -> None:
    """Draw the losses that ``log`` has into the file ``picture``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    save(losses_plot(read_log(log)), picture)


def losses_plot(entries: Entries, name: str = "loss") -> Plot:
    """Return training and validation loss over the steps, and the learning rate on its own axis."""

    def draw(figure: Any) -> None:
        losses = figure.add_subplot(xlabel="step", ylabel="loss (nats a token)")
        rates = losses.twinx()
        rates.set_ylabel("learning rate")
        rates.spines.right.set_visible(True)
        curves: tuple[tuple[Any, str, str, dict[str, Any]], ...] = (
            (losses, "loss", "training", {"color": COLOURS[0], "linewidth": 1}),
            (losses, "eval_loss", "validation", {"color": COLOURS[1], "marker": "o", "zorder": 3}),
            (rates, "learning_rate", "learning rate", {"color": INK, "linestyle": ":"}),
        )
        lines = []
        for axis, key, label, style in curves:
            if points := _points(entries, key):
                lines += axis.plot(*zip(*points, strict=True), label=label, **style)
        losses.legend(handles=lines)

    caption = "Loss of the rows trained on, step by step, and of the rows held out."
    return Plot(name, "Loss while finetuning", caption, draw)


def validations_plot(logs: Mapping[str, Entries]) -> Plot:
    """Return the validation losses of several runs over their steps."""

    def draw(figure: Any) -> None:
        axis = figure.add_subplot(xlabel="step", ylabel="validation loss (nats a token)")
        axis.grid(axis="y")
        for number, (run, entries) in enumerate(logs.items()):
            style = {
                "color": COLOURS[number % len(COLOURS)],
                "marker": MARKERS[number % len(MARKERS)],
                "linestyle": ("-", "--", ":")[number // len(COLOURS) % 3],
            }
            if points := _points(entries, "eval_loss"):
                axis.plot(*zip(*points, strict=True), label=run, **style)
        figure.legend(loc="outside lower left", ncols=2)

    rows = -(-len(logs) // 2)
    caption = "Loss of the rows held out; runs that hold out other rows do not compare."
    return Plot("losses", "Loss while finetuning", caption, draw, (5.4, 3.1 + 0.2 * rows))


def _points(entries: Entries, key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in entries if key in entry]
