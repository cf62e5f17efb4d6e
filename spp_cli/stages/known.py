"""What is known of a dense model, found once and kept for all runs of a workspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from spp_cli import processes
from spp_cli.allocation.allocation import Allocation
from spp_cli.allocation.dense import DenseModel
from spp_cli.atomic_files import remove_leftovers
from spp_cli.data.tokens import TokenSet
from spp_cli.fingerprint import FORMAT, arithmetic, canonical_json, disk_errors, sha256
from spp_cli.locking import exclusive_lock
from spp_cli.models.decoder import Linear
from spp_cli.pruning.saved import KEPT, SavedStatistics
from spp_cli.records import read_record, write_record
from spp_cli.stages.stage import Sources

__all__ = ["folder_of", "measured", "statistics"]


def folder_of(
    sources: Sources,
    tokens: TokenSet,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Path | None:
    """Return where what is known of the dense model by these tokens is kept; None: nowhere.

    ``dtype`` is the type of the weights in memory; None: as stored. Another batch size, device,
    type, number of processes or version of torch adds up the same numbers in another order, and a
    result must not depend on who came first.
    """
    if sources.statistics is None:
        return None
    named = None
    if processes.is_main():
        how = [batch_size, device.type, str(dtype), processes.count(), arithmetic()]
        named = sha256(canonical_json([FORMAT, sources.digests["dense"], tokens.digest, *how]))[:32]
    return sources.statistics / processes.give_out(named)


def statistics(folder: Path, dense: DenseModel) -> SavedStatistics:
    """Return what the text tells of all inputs in the dense model, from ``folder`` if it is there.

    What a kill left is completed. Of two commands that want it, one waits for the other.

    Raises:
        WorkspaceError: it cannot be written.
    """
    decoder, say = dense.source.decoder, dense.reporter.say
    saved = SavedStatistics(folder, len(decoder.blocks))
    if not processes.is_main():
        _gather(saved, dense, processes.give_out(None))
        return saved
    with exclusive_lock(folder / ".lock", "prune", of="statistics", wait=say):
        remove_leftovers(folder)
        missing = processes.give_out(saved.missing())
        for path in saved.damaged(missing):
            dense.reporter.warn(f"{path} is damaged, and gathered anew")
        if not missing:
            say(f"statistics of the dense model: {folder}, gathered before")
        _gather(saved, dense, missing)
    return saved


def _gather(saved: SavedStatistics, dense: DenseModel, missing: Sequence[int]) -> None:
    """Have the text flow through the dense model; the main process writes what is ``missing``."""
    if not missing:
        return
    decoder = dense.source.decoder
    everything = decoder.by_block(decoder.all_linears())
    wanted = [linears if index in missing else [] for index, linears in enumerate(everything)]
    for index, groups in dense.rounds(wanted, KEPT, "statistics"):
        if index in missing and processes.is_main():
            with disk_errors(saved.folder):
                saved.write(index, groups)
    processes.wait_for_all()


def measured(
    allocation: Allocation, linears: Sequence[Linear], dense: DenseModel, folder: Path
) -> Mapping[str, float]:
    """Return what ``allocation`` goes by, from ``folder`` if it was measured before."""
    settings = allocation.model_dump(mode="json", exclude=set(allocation.unmeasured))
    asked = [FORMAT, settings, [linear.name for linear in linears]]
    kept = folder / f"{allocation.name}-{sha256(canonical_json(asked))[:16]}.json"
    mine = read_record(kept, dense.reporter.warn) if processes.is_main() else None
    found: Mapping[str, float] | None = processes.give_out(mine)
    if found is None:
        found = allocation.measure(linears, dense)
        if processes.is_main():
            write_record(kept, dict(found))
    return found
