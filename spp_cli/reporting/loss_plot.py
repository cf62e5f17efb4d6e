"""The losses of a finetuning as a picture, from the log that it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spp_cli.errors import MissingExtraError

__all__ = ["draw_losses"]


def draw_losses(log: Path, picture: Path) -> None:
    """Draw training and validation loss over the steps, and the learning rate on its own axis.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot", picture.name) from None
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    losses = figure.add_subplot(xlabel="step", ylabel="loss (nats a token)")
    rates = losses.twinx()
    rates.set_ylabel("learning rate")
    lines = []
    curves: tuple[tuple[Any, str, str, dict[str, str]], ...] = (
        (losses, "loss", "training", {"color": "tab:blue"}),
        (losses, "eval_loss", "validation", {"color": "tab:orange", "marker": "o"}),
        (rates, "learning_rate", "learning rate", {"color": "tab:gray", "linestyle": ":"}),
    )
    for axis, key, label, style in curves:
        points = [(entry["step"], entry[key]) for entry in entries if key in entry]
        if points:
            lines += axis.plot(*zip(*points, strict=True), label=label, **style)
    losses.legend(handles=lines)
    figure.savefig(picture, dpi=120)
