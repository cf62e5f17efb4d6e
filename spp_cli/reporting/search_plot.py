"""The trials of a search for a learning rate as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spp_cli.errors import MissingExtraError

__all__ = ["draw_trials"]


def draw_trials(trials: Sequence[Mapping[str, Any]], picture: Path) -> None:
    """Draw the validation loss over the rate, a line for each schedule and r.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot", picture.name) from None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.add_subplot(
        xlabel="learning rate", ylabel="validation loss (nats a token)", xscale="log"
    )
    lines: dict[str, list[tuple[float, float]]] = {}
    for trial in trials:
        label = trial["schedule"] + ("" if trial["r"] is None else f", r {trial['r']}")
        lines.setdefault(label, []).append((trial["learning_rate"], trial["loss"]))
    for label, points in lines.items():
        axis.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axis.legend()
    figure.savefig(picture, dpi=120)
