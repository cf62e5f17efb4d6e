"""The commands, in the order in which help shows them."""

from spp_cli.commands.bench import BENCH
from spp_cli.commands.calibrate import CALIBRATE
from spp_cli.commands.card import CARD
from spp_cli.commands.compare import COMPARE
from spp_cli.commands.data import DATA_CHECK
from spp_cli.commands.diff import DIFF
from spp_cli.commands.folders import UNPACK, VERIFY
from spp_cli.commands.generate import GENERATE
from spp_cli.commands.plan import PLAN
from spp_cli.commands.push import PUSH
from spp_cli.commands.report import REPORT
from spp_cli.commands.stages import EVAL, FINETUNE, MERGE, PRUNE, RUN
from spp_cli.commands.status import STATUS
from spp_cli.commands.sweep import SWEEP

__all__ = ["COMMANDS", "GROUPS"]

COMMANDS = (
    CALIBRATE,
    PRUNE,
    FINETUNE,
    MERGE,
    EVAL,
    DATA_CHECK,
    RUN,
    SWEEP,
    PLAN,
    STATUS,
    COMPARE,
    DIFF,
    REPORT,
    CARD,
    PUSH,
    GENERATE,
    BENCH,
    VERIFY,
    UNPACK,
)
GROUPS = {"data": "Look after the data sets that tasks and texts come from."}
