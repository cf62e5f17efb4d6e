"""spp plan: what a configuration would do."""

from __future__ import annotations

from spp_cli.commands.command import Command, Given, asked, flag_parameter
from spp_cli.commands.parameters import CONFIG, SET
from spp_cli.errors import ConfigError
from spp_cli.flags import FLAGS
from spp_cli.invocation import resolve
from spp_cli.progress import Reporter
from spp_cli.reporting import tables
from spp_cli.reporting.answer import Answer

__all__ = ["PLAN"]


def _plan(given: Given, _: Reporter) -> Answer:
    config, run = resolve("plan", given["config"], asked(FLAGS["plan"], given))
    from spp_cli.plan import plan

    document = plan(config, run)
    text = tables.plan_table(document)
    return Answer(document, text, document["problem"], ConfigError.exit_code)


PLAN = Command(
    [CONFIG, *map(flag_parameter, FLAGS["plan"]), SET],
    _plan,
)
