"""spp prune, finetune, merge, eval and run: each runs stages of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Any

from spp_cli.commands.command import Command, Given, asked, flag_parameter
from spp_cli.commands.parameters import CONFIG, FORCE, SET, count, option, switch
from spp_cli.config import SppConfig
from spp_cli.errors import ConfigError
from spp_cli.flags import FLAGS
from spp_cli.invocation import resolve_for_folder, resolve_stage, stage_list
from spp_cli.progress import Reporter
from spp_cli.publishing import RESULTS
from spp_cli.reading import read_json
from spp_cli.reporting import tables
from spp_cli.reporting.answer import Answer
from spp_cli.reporting.previews import has_colour, rows_preview
from spp_cli.reporting.terminal import duration
from spp_cli.settings import Layer
from spp_cli.workspace import STAGES, Workspace

__all__ = ["EVAL", "FINETUNE", "MERGE", "PRUNE", "RUN", "say_which_model"]

_EMBEDDED = (
    "model: the embedded one (5.5 M parameters, trained on Python's standard library); "
    "choose another with --model"
)
_PATH = option(
    "path",
    "Evaluate this model folder, instead of the stages of a run",
    metavar="FOLDER",
    panel="Evaluation",
)
_PREVIEW = count(
    "preview",
    "Print so many rows as the model sees them, with what is trained on; train nothing",
    "Data",
)
_STAGES = option(
    "stages", "Run only these; prune,eval for example", metavar="STAGE,...", panel="Run"
)
_FIND_LR = switch(
    "find_lr", "Try rates, schedules and r in short finetunes, show the best, and stop", "Training"
)
_FROM_RUN = option(
    "from_run", "Take the earlier stages of this run over into a new --run", metavar="RUN",
    panel="Run",
)  # fmt: skip


def _command(name: str, stages: Sequence[str], *own: Parameter) -> Command:
    """Return the command that runs ``stages``, with the flags that the table gives it."""
    parameters = [CONFIG, *map(flag_parameter, FLAGS[name]), *own, SET, FORCE]
    return Command(parameters, partial(_run, name, stages))


def _run(name: str, stages: Sequence[str], given: Given, reporter: Reporter) -> Answer:
    flags = asked(FLAGS[name], given)
    if given.get("stages"):
        stages = stage_list(given["stages"], "--stages")
    if given.get("path"):
        return _evaluate_folder(given["path"], given["config"], flags, reporter)
    resolved = resolve_stage(name, given["config"], flags, from_run=given.get("from_run"))
    config, run = resolved.config, resolved.run
    if given.get("preview"):
        return _preview(config, resolved.source or run, given["preview"], reporter)
    if given.get("find_lr"):
        return _find_lr(config, resolved.source or run, reporter)
    if stages[0] == "prune":
        say_which_model(given, flags, reporter)
    from spp_cli.card import refresh_card
    from spp_cli.pipeline import run_stages

    outcomes = run_stages(
        stages, config, reporter, run=run, force=given["force"], source=resolved.source
    )
    if not outcomes:  # of several processes, this is one that only helps
        return Answer(None, "")
    if outcomes[-1].stage in ("merge", "eval"):
        refresh_card(Workspace(config.workspace).run(outcomes[-1].run), reporter)
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


def say_which_model(given: Given, flags: Layer, reporter: Reporter) -> None:
    """Say that it is the embedded model, if no other was named."""
    if not given["config"] and flags.get("model.path") is None:
        reporter.say(_EMBEDDED)


def _document(outcome: Any) -> dict[str, Any]:
    document = {
        "stage": outcome.stage,
        "run": outcome.run,
        "folder": str(outcome.folder),
        "skipped": outcome.skipped,
        "borrowed_from": outcome.manifest.borrowed_from,
        "metrics": outcome.manifest.metrics,
    }
    if outcome.stage == "eval":
        document["results"] = read_json(outcome.folder / RESULTS)
    return document


def _line(outcome: Any) -> str:
    sparsity = outcome.manifest.metrics.get("sparsity")
    facts = "" if sparsity is None else f", sparsity {sparsity:.4f}"
    if cost := outcome.manifest.metrics.get("rounding"):
        facts += f", {cost['update_kept']:.0%} of the update left"
    how = f"took {duration(outcome.manifest.seconds)}{facts}"
    if lender := outcome.manifest.borrowed_from:
        how = f"is that of run {lender}{facts}"
    if outcome.skipped:
        how = "is up to date"
    return f"{outcome.stage} {how}: {outcome.folder}"


def _evaluate_folder(path: str, file: str | None, flags: Layer, reporter: Reporter) -> Answer:
    if flags.get("eval.stages") is not None or flags.get("run") is not None:
        raise ConfigError("--path evaluates a folder of its own; leave --stage and --run out")
    config = resolve_for_folder(path, file, flags)
    from spp_cli.stages.evaluate import evaluate_folder

    document = evaluate_folder(config, Path(path), reporter)
    return Answer(document, tables.evaluation_table(document))


PRUNE = _command("prune", ["prune"])
FINETUNE = _command("finetune", ["finetune"], _PREVIEW, _FIND_LR, _FROM_RUN)
MERGE = _command("merge", ["merge"], _FROM_RUN)
EVAL = _command("eval", ["eval"], _PATH)
RUN = _command("run", STAGES, _STAGES)
