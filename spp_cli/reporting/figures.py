"""The one place that asks for matplotlib: plots into files, or into a page as inline SVG.

Lines and letters are of a grey that is read on white and on black alike, on no background. Colours
are those of Okabe and Ito, some a little changed so that all have a contrast of 3 : 1 or more on
both; a colour is never the only mark of a line.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spp_cli.atomic_files import UnfinishedFile, remove_leftovers
from spp_cli.errors import MissingExtraError

__all__ = ["COLOURS", "INK", "MARKERS", "Plot", "as_svg", "require", "save"]

INK = "#757575"  # 4.6 : 1 on white, 4.6 : 1 on black
COLOURS = ("#1a7fc1", "#d55e00", "#009e73", "#c0689a", "#997700")
MARKERS = ("o", "s", "^", "D", "v", "P")  # six, so that thirty lines differ in one or the other
_STYLE: dict[str, Any] = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "axes.grid": False,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.hashsalt": "spp",  # the same plot gives the same file
}
_SAVED = "a plot by spp"  # stands in every file
_NO_TRACES = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Plot:
    """A plot that is yet to be drawn: ``draw`` puts axes into an empty matplotlib figure.

    ``name`` is unique in a report, and that of the files; ``size`` is in inches.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Any], None]
    size: tuple[float, float] = (5.4, 3.3)


def require(purpose: str) -> Any:
    """Return matplotlib, which ``purpose`` needs.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot", purpose) from None
    return matplotlib


def save(plot: Plot, path: Path) -> None:
    """Draw a plot into a file, all of it or nothing: PNG, SVG or what matplotlib knows else.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    metadata = {**_NO_TRACES, "Creator": _SAVED} if path.suffix == ".svg" else {"Software": _SAVED}
    file = io.BytesIO()
    _draw(plot, path.name, file, format=path.suffix[1:], metadata=metadata, dpi=160)
    remove_leftovers(path.parent)
    UnfinishedFile(path, lambda stream: stream.write(file.getbuffer())).finish()


def is_saved(beginning: bytes) -> bool:
    """Whether a file that begins so is a plot that ``save`` has drawn."""
    return _SAVED.encode() in beginning


def as_svg(plot: Plot) -> str:
    """Return a plot as an SVG element that takes letters and colour from the page around it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    file = io.StringIO()
    letters = {"svg.fonttype": "none"}
    _draw(plot, "a report with plots", file, letters, format="svg", metadata=_NO_TRACES)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.S
    )
    svg = svg.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui, sans-serif")
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda m: m[0] if m[1] in used else "", svg)
    # Ids are of one page, not of one picture.
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{re.sub('[^a-zA-Z0-9]', '-', plot.name)}-", svg)
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', _root, svg, count=1)


def _root(match: re.Match[str]) -> str:
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} {match[1]} aria-hidden="true">'


def _draw(
    plot: Plot, purpose: str, target: Any, more: dict[str, Any] | None = None, **how: Any
) -> None:
    matplotlib = require(purpose)
    with matplotlib.rc_context({**_STYLE, **(more or {})}):
        figure = matplotlib.figure.Figure(figsize=plot.size, layout="constrained")
        plot.draw(figure)
        figure.savefig(target, **how)
