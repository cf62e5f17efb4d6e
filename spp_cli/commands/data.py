"""spp data check: which data sets are on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from spp_cli.commands.command import Command, Given, asked, flag_parameter
from spp_cli.commands.parameters import CONFIG, SET
from spp_cli.config import SppConfig
from spp_cli.errors import ConfigError
from spp_cli.flags import FLAGS
from spp_cli.invocation import resolve
from spp_cli.progress import Reporter
from spp_cli.reporting import tables
from spp_cli.reporting.answer import Answer

__all__ = ["DATA_CHECK"]


def _check(given: Given, _: Reporter) -> Answer:
    config, __ = resolve("data check", given["config"], asked(FLAGS["data check"], given))
    found = [asdict(each) for each in _whereabouts(config, given["config"] is not None)]
    missing = sum(each["state"] == "missing" for each in found)
    document = {"data_folder": config.eval.data_folder, "data_sets": found, "missing": missing}
    failed = f"{missing} of {len(found)} data sets are missing; the table says how to get each"
    return Answer(
        document, tables.whereabouts_table(found), failed * bool(missing), ConfigError.exit_code
    )


def _whereabouts(config: SppConfig, has_file: bool) -> list[Any]:
    """Return where all data sets lie; the calibration text only of what a file configures."""
    from spp_cli.data.whereabouts import text_whereabouts
    from spp_cli.evaluation.at_hand import tasks_at_hand
    from spp_cli.evaluation.data_sets import data_folder
    from spp_cli.evaluation.harness import require_harness
    from spp_cli.models.checkpoint import is_demo_family

    path, folder = config.model.path, data_folder(config.eval)
    demo = path == "demo" or is_demo_family(Path(path))
    found = []
    if has_file and config.prune.reads_text:
        calibration = config.prune.calibration
        found += text_whereabouts(calibration, "calibration", demo=demo, data_folder=folder)
    if "perplexity" in config.eval.tasks:
        text = config.eval.perplexity
        found += text_whereabouts(text, "test", demo=demo, data_folder=folder)
    names = [name for name in config.eval.tasks if name != "perplexity"]
    if names:
        require_harness()
        found += tasks_at_hand(names, config.eval)
    return found


DATA_CHECK = Command(
    [CONFIG, *map(flag_parameter, FLAGS["data check"]), SET],
    _check,
)
