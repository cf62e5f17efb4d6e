"""spp verify and spp unpack: for any model folder, of a run or not."""

from __future__ import annotations

from pathlib import Path

from spp_cli.commands.command import Command, Given
from spp_cli.commands.parameters import argument, option, switch
from spp_cli.outputs import check_output_folder
from spp_cli.progress import Reporter
from spp_cli.reporting import tables
from spp_cli.reporting.answer import Answer

__all__ = ["UNPACK", "VERIFY"]


def _verify(given: Given, _: Reporter) -> Answer:
    from spp_cli.sparsity.verify import verify_folder

    report = verify_folder(
        given["path"], given["pattern"], trust_remote_code=given["trust_remote_code"]
    )
    return Answer(report.as_dict(), tables.verify_table(report.as_dict()), report.summary())


def _unpack(given: Given, _: Reporter) -> Answer:
    from spp_cli.sparsity.archive import unpack_folder

    unpack_folder(Path(given["path"]), check_output_folder(given["target"], "the target"))
    return Answer({"folder": given["target"]}, f"unpacked: {given['target']}")


VERIFY = Command(
    [
        argument("path", "Hugging Face model folder"),
        option(
            "pattern",
            "Pattern to check against; default: what spp recorded in the folder",
            metavar="N:M",
        ),
        switch("trust_remote_code", "Run Python code that comes with the model"),
    ],
    _verify,
)
UNPACK = Command(
    [argument("path", "Archive folder"), argument("target", "Folder to be made")],
    _unpack,
)
