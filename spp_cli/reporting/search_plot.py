"""The trials of a search for a learning rate as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spp_cli.reporting.figures import COLOURS, MARKERS, Plot, save

__all__ = ["draw_trials"]


def draw_trials(trials: Sequence[Mapping[str, Any]], picture: Path) -> None:
    """Draw the validation loss over the rate, a line for each schedule and r.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    for trial in trials:
        label = trial["schedule"] + ("" if trial["r"] is None else f", r {trial['r']}")
        lines.setdefault(label, []).append((trial["learning_rate"], trial["loss"]))

    def draw(figure: Any) -> None:
        axis = figure.add_subplot(
            xlabel="learning rate", ylabel="validation loss (nats a token)", xscale="log"
        )
        for number, (label, points) in enumerate(lines.items()):
            style = {
                "color": COLOURS[number % len(COLOURS)],
                "marker": MARKERS[number % len(MARKERS)],
            }
            axis.plot(*zip(*sorted(points), strict=True), label=label, **style)
        axis.legend()

    save(Plot(picture.stem, "Trials of the search", "", draw), picture)
