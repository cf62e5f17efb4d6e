"""The report as one HTML page that needs nothing else: style and plots are in it, scripts are not.

It is well-formed XML besides, so that any parser can check it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from spp_cli.reporting.figures import Plot
from spp_cli.reporting.markup import Markup, element, join
from spp_cli.reporting.story import story
from spp_cli.reporting.tables import TITLES, evaluation_cells, stage_cells

__all__ = ["is_page", "page"]

Draw = Callable[[Plot], str]
_TITLE = "spp report: "
ERROR_FROM = {
    "gram": "exactly, from the Gram matrix of the layer's inputs",
    "norms": "from the norms of the layer's inputs, which are taken as uncorrelated",
    "weights": "from the weights alone, as the method looks at no inputs",
}


def page(
    document: Mapping[str, Any],
    plots: Mapping[str, Sequence[Plot]],
    draw: Draw | None,
    missing: str = "",
) -> str:
    """Return the whole page.

    Args:
        document: what ``spp_cli.report.gather`` returns; of several runs with ``comparison``:
            columns, rows and notes of ``comparison_cells``, or None.
        plots: of each run by its name, and under "" those of all together.
        draw: makes an SVG element of a plot; None if there can be no plots.
        missing: why there are none.
    """
    runs = document["runs"]
    names = [run["run"] for run in runs]
    title = names[0] if len(names) == 1 else f"{len(names)} runs"
    several = len(runs) > 1
    body = [
        _head(document, title),
        _warning(missing) if draw is None else None,
        _contents(names) if several else None,
        _together(document, plots.get("", ()), draw) if several else None,
        *(_run(run, plots.get(run["run"], ()), draw, heading=several) for run in runs),
        _foot(document),
    ]
    style = Markup(resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8"))
    whole = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("title", f"{_TITLE}{title}"),
            element("style", style),
        ),
        element("body", element("main", *body)),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{whole}\n"


def is_page(beginning: bytes) -> bool:
    """Whether a file that begins so is a page that ``page`` has made."""
    return f"<title>{_TITLE}".encode() in beginning


def _head(document: Mapping[str, Any], title: str) -> Markup:
    made = document["made"]
    kicker = f"spp {made['spp']} report, {made['date'][:16].replace('T', ' ')}"
    return join(element("h1", title), element("p", kicker, class_="kicker"))


def _warning(text: str) -> Markup:
    return element("p", text, class_="warn")


def _contents(names: Sequence[str]) -> Markup:
    links = [("All together", "together"), *((name, f"run-{name}") for name in names)]
    items = (element("li", element("a", text, href=f"#{place}")) for text, place in links)
    return element("nav", element("ul", *items), aria_label="Contents")


def _together(document: Mapping[str, Any], plots: Sequence[Plot], draw: Draw | None) -> Markup:
    unmeasured = "None of them has an evaluation yet. Run: spp eval --run NAME"
    header, rows, notes = document["comparison"] or ((), (), [unmeasured])
    return element(
        "section",
        element("h2", "All together"),
        _table(header, rows, "Comparison of all runs") if rows else None,
        *(element("p", note, class_="note") for note in notes),
        _figures(plots, draw),
        id="together",
    )


def _run(
    run: Mapping[str, Any], plots: Sequence[Plot], draw: Draw | None, *, heading: bool
) -> Markup:
    return element(
        "section",
        element("h2", run["run"]) if heading else None,
        element("p", story(run), class_="lead"),
        *map(_warning, run["warnings"]),
        _evaluation(run["evaluation"]),
        _plots(run, plots, draw),
        _samples(run["samples"]),
        _reproduce(run),
        id=f"run-{run['run']}",
    )


def _evaluation(results: Mapping[str, Any] | None) -> Markup | None:
    if not results:
        return None
    header, rows, notes = evaluation_cells(results)
    note = "Perplexity is better when lower, accuracy (acc) when higher, ± its standard error."
    if header[-1]:
        note += " Recovered: the share of what pruning lost that came back, perplexity in nats."
    return join(
        element("h3", "Quality"),
        _table(header, rows, "Evaluation of each stage"),
        *(element("p", text, class_="note") for text in (*notes, note)),
    )


def _plots(run: Mapping[str, Any], plots: Sequence[Plot], draw: Draw | None) -> Markup | None:
    source = run["output_error_from"]
    pruned = "prune" in run["manifests"]
    error = (
        "Error of a layer's output: ‖X(W′ − W)ᵀ‖ / ‖XWᵀ‖, where X is the calibration text as it "
        f"came to the layer when it was pruned. It was found {ERROR_FROM[source]}."
        if source
        else "There is no map of the errors of the layers' outputs: this run was pruned before spp "
        "recorded them."
    )
    if draw is None:
        return None
    return join(
        element("h3", "What pruning took, and what came back"),
        _figures(plots, draw),
        element("p", error, class_="note") if pruned else None,
    )


def _figures(plots: Sequence[Plot], draw: Draw | None) -> Markup | None:
    if not plots or draw is None:
        return None
    drawn = (
        element(
            "figure",
            element("h4", plot.title),
            element("div", Markup(draw(plot)), role="img", aria_label=plot.title),
            element("figcaption", plot.caption) if plot.caption else None,
        )
        for plot in plots
    )
    return element("div", *drawn, class_="figures")


def _samples(samples: Mapping[str, Any] | None) -> Markup | None:
    if not samples:
        return None
    shown = (
        element(
            "div",
            element("pre", prompt),
            element(
                "div",
                *(
                    element("div", element("h4", TITLES[stage]), _written(texts[place]))
                    for stage, texts in samples["models"].items()
                ),
                class_="columns",
            ),
            class_="sample",
        )
        for place, prompt in enumerate(samples["prompts"])
    )
    note = (
        f"On grey what each model was given, below how it goes on: {samples['new_tokens']} tokens "
        "at most, the most likely one every time."
    )
    return join(element("h3", "Samples"), element("p", note, class_="note"), *shown)


def _written(text: str) -> Markup:
    """Return what a model wrote; blank lines at its end are told, not shown."""
    if not (shown := text.rstrip()):
        return element("p", "nothing but blanks" if text else "nothing", class_="note")
    return element("pre", shown)


def _reproduce(run: Mapping[str, Any]) -> Markup:
    return join(
        element("h3", "Reproduce it"),
        element("pre", "\n".join(run["commands"]), class_="box"),
        _details("Configuration", element("pre", run["config"], class_="box")),
        _details("Stages", _table(*stage_cells(run["status"]["stages"]), "Stages")),
        _details("Versions, machine and digests", _facts(run["facts"])),
    )


def _details(summary: str, content: Markup) -> Markup:
    return element("details", element("summary", summary), content)


def _facts(facts: Mapping[str, str]) -> Markup:
    rows = (
        element("tr", element("th", name, scope="row"), element("td", element("code", value)))
        for name, value in facts.items()
    )
    return element(
        "div", element("table", element("tbody", *rows), class_="facts"), class_="scroll"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> Markup:
    """Return a table in a box of its own, which scrolls where the page is too narrow for it."""
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    lines = (
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell) for cell in row[1:]),
        )
        for row in rows
    )
    table = element("table", element("thead", head), element("tbody", *lines))
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _foot(document: Mapping[str, Any]) -> Markup:
    made = document["made"]
    return element("footer", f"Made with spp {made['spp']} on {made['machine']}.")
