"""spp report: a page about one or more runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spp_cli.commands.command import Command, Given, named_runs, workspace_of
from spp_cli.commands.parameters import SWEEP_NAME, WORKSPACE, argument, option, switch
from spp_cli.comparison import mark, rows
from spp_cli.errors import ConfigError, MissingExtraError
from spp_cli.fingerprint import disk_errors, write_text
from spp_cli.outputs import check_output, check_output_folder
from spp_cli.progress import Reporter
from spp_cli.report import gather, look_inside
from spp_cli.reporting import figures
from spp_cli.reporting.answer import Answer
from spp_cli.reporting.comparison_table import comparison_cells
from spp_cli.reporting.figures import Plot
from spp_cli.reporting.page import is_page, page
from spp_cli.reporting.plots import common_plots, run_plots
from spp_cli.workspace import Run, Workspace

__all__ = ["REPORT"]


def _report(given: Given, reporter: Reporter) -> Answer:
    workspace = workspace_of(given)
    runs = named_runs(given, workspace) or [workspace.latest("prune")]
    output = _output(given["output"], workspace, [run.name for run in runs])
    folder = check_output_folder(given["plots"], "--plots") if given["plots"] else None
    prompts = _prompts(given)
    missing = ""
    try:
        figures.require("a report with plots")
    except MissingExtraError as error:
        if given["plots"]:
            raise
        missing = f"No plots: {error}."

    document = gather(runs)
    for run, gathered in zip(runs, document["runs"], strict=True):
        look_inside(run, gathered, reporter, prompts=prompts, layer=given["layer"])
    plots = {gathered["run"]: run_plots(gathered) for gathered in document["runs"]}
    if len(runs) > 1:
        found = _to_compare(runs)
        document["comparison"] = comparison_cells(found) if found else None
        plots[""] = common_plots(document["runs"], found)
    drawn = _to_draw(plots.values(), folder) if folder else {}
    html = page(document, plots, None if missing else figures.as_svg, missing)
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, html)
    files = _draw(drawn)
    warnings = [text for gathered in document["runs"] for text in gathered["warnings"]]
    for text in filter(None, [missing, *warnings]):
        reporter.warn(text)
    answer = {
        "file": str(output),
        "runs": [run.name for run in runs],
        "plots": files,
        "warnings": [missing] * bool(missing) + warnings,
    }
    where = f"; {len(files)} plots in {given['plots']}" if files else ""
    return Answer(answer, f"report: {output}{where}")


def _to_compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the rows of a comparison; of a finetuned model and the merged one only the latter."""
    found = rows(runs)
    merged = {row["run"] for row in found if row["stage"] == "merge"}
    chosen = [row for row in found if row["stage"] != "finetune" or row["run"] not in merged]
    mark(chosen)
    return chosen


def _output(given: str | None, workspace: Workspace, names: Sequence[str]) -> Path:
    """Return where the page goes: beside the stages of one run, beside the runs of several."""
    folder = workspace.root / names[0] if len(names) == 1 else workspace.root
    output = given or folder / "report.html"
    return check_output(output, "--output", "a report", is_page, (".html", ".htm"))


def _prompts(given: Given) -> list[str] | None:
    prompts = given["prompt"] or []
    if given["no_samples"]:
        if prompts:
            raise ConfigError("--prompt asks for samples, and --no-samples for none. Leave one out")
        return None
    if any(not prompt.strip() for prompt in prompts):
        raise ConfigError("--prompt is empty. Give some words that the models go on from")
    return list(prompts)


def _to_draw(plots: Iterable[Sequence[Plot]], folder: Path) -> dict[Path, Plot]:
    """Return each plot by the files that it goes to, SVG and PNG.

    Raises:
        ConfigError: one of them is there, and is no plot of spp.
    """
    files = {
        folder / f"{plot.name}.{suffix}": plot
        for each in plots
        for plot in each
        for suffix in ("svg", "png")
    }
    for file in files:
        check_output(file, "a file of --plots", "a plot", figures.is_saved)
    return files


def _draw(plots: Mapping[Path, Plot]) -> list[str]:
    """Draw each plot into its file; return their paths."""
    for file, plot in plots.items():
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            figures.save(plot, file)
    return list(map(str, plots))


_RUNS = argument(
    "runs", "Names of runs; default: the latest", metavar="[RUN]...", kind=list[str] | None
)
_OUTPUT = option(
    "output",
    "The page; default: report.html beside the stages, or beside the runs",
    metavar="FILE.html",
)
_PLOTS = option("plots", "Draw the plots into this folder too, as SVG and PNG", metavar="FOLDER")
_LAYER = option(
    "layer",
    "Layers whose weights are shown; default: the one that pruning moved most",
    metavar="GLOB",
)
_PROMPT = option(
    "prompt",
    "Let the models go on from this; may be given more than once; "
    "default: first lines of the evaluation text",
    kind=list[str],
)
REPORT = Command(
    [
        _RUNS,
        _OUTPUT,
        _PLOTS,
        _LAYER,
        _PROMPT,
        switch("no_samples", "Write no samples: they load the models"),
        SWEEP_NAME,
        WORKSPACE,
    ],
    _report,
)
