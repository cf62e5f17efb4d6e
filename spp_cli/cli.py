"""The commands: flags and YAML become a configuration, the configuration a call of the pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

import typer

from spp_cli import __version__
from spp_cli.config import SppConfig
from spp_cli.errors import ConfigError
from spp_cli.flags import FLAGS, Flag
from spp_cli.invocation import default_workspace, resolve, resolve_for_folder
from spp_cli.progress import Reporter
from spp_cli.reporting import tables
from spp_cli.reporting.answer import Answer, Manner, give
from spp_cli.reporting.previews import has_colour, rows_preview
from spp_cli.reporting.terminal import duration
from spp_cli.settings import Layer, assigned, parse_assignment
from spp_cli.status import run_status
from spp_cli.workspace import STAGES, Workspace

__all__ = ["app"]

_EMBEDDED = (
    "model: the embedded one (5.5 M parameters, trained on Python's standard library); "
    "choose another with --model"
)

app = typer.Typer(
    name="spp",
    help="Prune a language model, finetune it without losing a single zero, merge, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _switch(name: str, text: str, panel: str) -> Any:
    return typer.Option(False, f"--{name}", help=text, metavar="", rich_help_panel=panel)


_HOW: dict[str, Any] = {
    "json": _switch("json", "Print one JSON document on stdout, all else on stderr", "Output"),
    "quiet": _switch("quiet", "Show only warnings, errors and the result", "Output"),
    "debug": _switch("debug", "Show the traceback of an error, and what libraries say", "Output"),
}
_CONFIG = typer.Argument(
    None, metavar="CONFIG.yaml", help="YAML file; flags override it", show_default=False
)
_SET = typer.Option(
    None,
    "--set",
    metavar="KEY=VALUE",
    help="Set any key, e.g. prune.calibration.seed=1; may be given more than once",
    show_default=False,
    rich_help_panel="Run",
)
_FORCE = _switch("force", "Make it anew, whatever is there", "Run")
_PATH = typer.Option(
    None,
    "--path",
    metavar="FOLDER",
    help="Evaluate this model folder, instead of the stages of a run",
    show_default=False,
    rich_help_panel="Evaluation",
)
_PREVIEW = typer.Option(
    0,
    "--preview",
    min=0,
    metavar="INTEGER",
    help="Print the beginnings of so many sequences as text",
    show_default=False,
    rich_help_panel="Output",
)
_PREVIEW_ROWS = typer.Option(
    0,
    "--preview",
    min=0,
    metavar="INTEGER",
    help="Print so many rows as the model sees them, with what is trained on; train nothing",
    show_default=False,
    rich_help_panel="Data",
)
_FIND_LR = _switch(
    "find-lr", "Try rates, schedules and r in short finetunes, show the best, and stop", "Training"
)
_WORKSPACE = typer.Option(
    None,
    "--workspace",
    metavar="TEXT",
    help="Folder of all runs; default: $SPP_WORKSPACE, or ./workspace",
    show_default=False,
)


def _option(flag: Flag) -> Parameter:
    """Return the parameter of a flag; None means that it was not given."""
    names = flag.option
    kind: Any = list[str] if flag.is_list else str
    if flag.is_switch:
        names, kind = f"{flag.option}/{flag.option.replace('--', '--no-', 1)}", bool
    default = rf" [dim]\[default: {flag.default}][/dim]" if flag.default else ""
    option = typer.Option(
        None,
        names,
        help=f"{flag.description}{default}",
        metavar="" if flag.is_switch else flag.value,
        show_default=False,
        rich_help_panel=flag.panel,
    )
    return _parameter(flag.key.replace(".", "__"), kind | None, option)


def _parameter(name: str, kind: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _finish(
    context: typer.Context, given: dict[str, Any], work: Callable[[Reporter], Answer]
) -> None:
    """Do a command's work; the output options may stand before the command or after it."""
    before = context.obj or {}
    manner = Manner(**{name: given[name] or before.get(name, False) for name in _HOW})
    code = give(manner, work)
    if code:
        raise typer.Exit(code)


def _with_parameters(body: Callable[..., None], parameters: Sequence[Parameter]) -> Any:
    """Give ``body(context, given)`` the parameters that Typer is to read from its signature."""
    context = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
    how = [_parameter(name, bool, option) for name, option in _HOW.items()]

    def command(**given: Any) -> None:
        body(given.pop("context"), given)

    signature = Signature([context, *parameters, *how])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return command


def _stage_command(name: str, stages: Sequence[str], text: str) -> None:
    """Add a command that runs ``stages``, with the flags that the table gives it."""

    def body(context: typer.Context, given: dict[str, Any]) -> None:
        _finish(context, given, lambda reporter: _run(name, stages, given, reporter))

    own = {
        "eval": [_parameter("path", str | None, _PATH)],
        "finetune": [
            _parameter("preview", int, _PREVIEW_ROWS),
            _parameter("find_lr", bool, _FIND_LR),
        ],
    }
    parameters = [
        _parameter("config", str | None, _CONFIG),
        *map(_option, FLAGS[name]),
        *own.get(name, []),
        _parameter("assignments", list[str] | None, _SET),
        _parameter("force", bool, _FORCE),
    ]
    app.command(name, help=text)(_with_parameters(body, parameters))


def _run(name: str, stages: Sequence[str], given: dict[str, Any], reporter: Reporter) -> Answer:
    flags = _asked(FLAGS[name], given)
    if given.get("path"):
        return _evaluate_folder(given["path"], given["config"], flags, reporter)
    config, run = resolve(name, given["config"], flags)
    if given.get("preview"):
        return _preview(config, run, given["preview"], reporter)
    if given.get("find_lr"):
        return _find_lr(config, run, reporter)
    if stages[0] == "prune":
        _say_which_model(given, flags, reporter)
    from spp_cli.pipeline import run_stages

    outcomes = run_stages(stages, config, reporter, run=run, force=given["force"])
    if not outcomes:  # of several processes, this is one that only helps
        return Answer(None, "")
    documents = [_document(outcome) for outcome in outcomes]
    text = "\n".join(_line(outcome) for outcome in outcomes)
    evaluation = documents[-1].get("results")
    if evaluation:
        text += f"\n\n{tables.evaluation_table(evaluation)}"
    return Answer(documents[0] if name in STAGES else {"stages": documents}, text)


def _preview(config: SppConfig, run: str | None, count: int, reporter: Reporter) -> Answer:
    from spp_cli.pipeline import preview

    document = preview(config, reporter, run=run, count=count)
    return Answer(document, rows_preview(document, colour=has_colour()))


def _find_lr(config: SppConfig, run: str | None, reporter: Reporter) -> Answer:
    from spp_cli.pipeline import find_lr

    document = find_lr(config, reporter, run=run)
    return Answer(document, tables.trials_table(document))


def _plan(context: typer.Context, given: dict[str, Any]) -> None:
    def work(_: Reporter) -> Answer:
        config, run = resolve("plan", given["config"], _asked(FLAGS["plan"], given))
        from spp_cli.plan import plan

        document = plan(config, run)
        text = tables.plan_table(document)
        return Answer(document, text, document["problem"], ConfigError.exit_code)

    _finish(context, given, work)


def _say_which_model(given: dict[str, Any], flags: Layer, reporter: Reporter) -> None:
    if not given["config"] and flags.get("model.path") is None:
        reporter.say(_EMBEDDED)


def _asked(flags: Sequence[Flag], given: dict[str, Any]) -> Layer:
    """Return the settings on the command line: flags, then --set, which is the stronger."""
    found = ((flag, given[flag.key.replace(".", "__")]) for flag in flags)
    named = [flag.assignment(value) for flag, value in found if value not in (None, [])]
    return assigned([*named, *map(parse_assignment, given["assignments"] or [])])


def _document(outcome: Any) -> dict[str, Any]:
    document = {
        "stage": outcome.stage,
        "run": outcome.run,
        "folder": str(outcome.folder),
        "skipped": outcome.skipped,
        "metrics": outcome.manifest.metrics,
    }
    if outcome.stage == "eval":
        document["results"] = json.loads((outcome.folder / "results.json").read_bytes())
    return document


def _line(outcome: Any) -> str:
    sparsity = outcome.manifest.metrics.get("sparsity")
    facts = "" if sparsity is None else f", sparsity {sparsity:.4f}"
    took = duration(outcome.manifest.seconds)
    how = "is up to date" if outcome.skipped else f"took {took}{facts}"
    return f"{outcome.stage} {how}: {outcome.folder}"


def _evaluate_folder(path: str, file: str | None, flags: Layer, reporter: Reporter) -> Answer:
    if flags.get("eval.stages") is not None or flags.get("run") is not None:
        raise ConfigError("--path evaluates a folder of its own; leave --stage and --run out")
    config = resolve_for_folder(path, file, flags)
    from spp_cli.stages.evaluate import evaluate_folder

    document = evaluate_folder(config, Path(path), reporter)
    return Answer(document, tables.evaluation_table(document))


def _calibrate(context: typer.Context, given: dict[str, Any]) -> None:
    def work(reporter: Reporter) -> Answer:
        flags = _asked(FLAGS["calibrate"], given)
        config, _ = resolve("calibrate", given["config"], flags)
        _say_which_model(given, flags, reporter)
        from spp_cli.pipeline import calibrate

        document = calibrate(config, reporter, preview=given["preview"])
        return Answer(document, tables.calibration_table(document))

    _finish(context, given, work)


app.command("calibrate", help="Draw the calibration tokens once, for every prune to come.")(
    _with_parameters(
        _calibrate,
        [
            _parameter("config", str | None, _CONFIG),
            *map(_option, FLAGS["calibrate"]),
            _parameter("preview", int, _PREVIEW),
            _parameter("assignments", list[str] | None, _SET),
        ],
    )
)
_stage_command("prune", ["prune"], "Prune a dense model: the lowest scores become zeros.")
_stage_command("finetune", ["finetune"], "Train an adapter on a pruned model; no zero is lost.")
_stage_command("merge", ["merge"], "Multiply the adapter into the weights: a plain sparse model.")
_stage_command("eval", ["eval"], "Measure perplexity and accuracy of any stage, or of a folder.")
_stage_command("run", STAGES, "Run all stages in order, skipping what is up to date.")


def _status(context: typer.Context, given: dict[str, Any]) -> None:
    def work(_: Reporter) -> Answer:
        workspace = Workspace(given["workspace"] or default_workspace())
        if given["run"] is None:
            rows = [run_status(run) for run in workspace.runs()]
            text = tables.status_table(rows) if rows else f"{workspace.root} has no runs yet"
            return Answer({"workspace": str(workspace.root), "runs": rows}, text)
        run = workspace.run(given["run"])
        if not run.exists():
            names = ", ".join(found.name for found in workspace.runs()) or "none"
            raise ConfigError(f"{workspace.root} has no run {run.name}. Runs there: {names}")
        status = run_status(run)
        text = f"{tables.status_table([status])}\n\n{tables.run_table(status['stages'])}"
        return Answer(status, text)

    _finish(context, given, work)


def _verify(context: typer.Context, given: dict[str, Any]) -> None:
    def work(_: Reporter) -> Answer:
        from spp_cli.sparsity.verify import verify_folder

        report = verify_folder(given["path"], given["pattern"])
        return Answer(report.as_dict(), tables.verify_table(report.as_dict()), report.summary())

    _finish(context, given, work)


app.command("plan", help="Show what a configuration would do and need; reads no weights.")(
    _with_parameters(
        _plan,
        [
            _parameter("config", str | None, _CONFIG),
            *map(_option, FLAGS["plan"]),
            _parameter("assignments", list[str] | None, _SET),
        ],
    )
)
app.command("status", help="Show the runs in the workspace, or one run stage by stage.")(
    _with_parameters(
        _status,
        [
            _parameter(
                "run",
                str | None,
                typer.Argument(None, metavar="RUN", help="Name of a run", show_default=False),
            ),
            _parameter("workspace", str | None, _WORKSPACE),
        ],
    )
)
app.command(
    "verify", help="Check the zeros of any model folder, layer by layer; exit 1 if broken."
)(
    _with_parameters(
        _verify,
        [
            _parameter(
                "path", str, typer.Argument(..., metavar="PATH", help="Hugging Face model folder")
            ),
            _parameter(
                "pattern",
                str | None,
                typer.Option(
                    None,
                    "--pattern",
                    metavar="N:M",
                    help="Pattern to check against; default: what spp recorded in the folder",
                    show_default=False,
                ),
            ),
        ],
    )
)


def _unpack(context: typer.Context, given: dict[str, Any]) -> None:
    def work(_: Reporter) -> Answer:
        from spp_cli.sparsity.archive import unpack_folder

        unpack_folder(Path(given["path"]), Path(given["target"]))
        return Answer({"folder": given["target"]}, f"unpacked: {given['target']}")

    _finish(context, given, work)


app.command("unpack", help="Bring back the model folder that spp merge --packed made small.")(
    _with_parameters(
        _unpack,
        [
            _parameter(name, str, typer.Argument(..., metavar=name.upper(), help=text))
            for name, text in (("path", "Archive folder"), ("target", "Folder to be made"))
        ],
    )
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spp {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    json: bool = _HOW["json"],
    quiet: bool = _HOW["quiet"],
    debug: bool = _HOW["debug"],
    version: bool = typer.Option(
        False,
        "--version",
        help="Show the version",
        metavar="",
        is_eager=True,
        callback=_show_version,
    ),
) -> None:
    context.obj = {"json": json, "quiet": quiet, "debug": debug}
