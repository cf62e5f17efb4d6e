"""spp calibrate: the calibration tokens as a file of their own."""

from __future__ import annotations

from spp_cli.commands.command import Command, Given, asked, flag_parameter
from spp_cli.commands.parameters import CONFIG, SET, count
from spp_cli.commands.stages import say_which_model
from spp_cli.flags import FLAGS
from spp_cli.invocation import resolve
from spp_cli.progress import Reporter
from spp_cli.reporting import tables
from spp_cli.reporting.answer import Answer

__all__ = ["CALIBRATE"]


def _calibrate(given: Given, reporter: Reporter) -> Answer:
    flags = asked(FLAGS["calibrate"], given)
    config, _ = resolve("calibrate", given["config"], flags)
    say_which_model(given, flags, reporter)
    from spp_cli.pipeline import calibrate

    document = calibrate(config, reporter, preview=given["preview"])
    return Answer(document, tables.calibration_table(document))


_PREVIEW = count("preview", "Print the beginnings of so many sequences as text", "Output")
CALIBRATE = Command(
    [CONFIG, *map(flag_parameter, FLAGS["calibrate"]), _PREVIEW, SET],
    _calibrate,
)
