"""What a checkpoint holds that is no part of the model which its config.json describes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from transformers import PreTrainedModel

from spp_cli.errors import ModelError
from spp_cli.models.stored import StoredTensors

__all__ = ["check_unused"]

_NUMBERED = re.compile(r"(.+?)\.(\d+)\.(.+)")  # the list of blocks, the block, and what it has
_SHOWN = 3  # kinds of tensors that a warning names
Blocks = dict[str, dict[int, set[str]]]  # by list and number the names within a block


def check_unused(stored: StoredTensors, model: PreTrainedModel) -> str | None:
    """Return a warning that names the tensors which ``model`` does not use; None if it uses all.

    What its family is known to leave out is no reason for one. Blocks that predict further tokens
    (MTP), as DeepSeek's after its last, are not used; they have tensors that no other block has.

    Raises:
        ModelError: there are blocks like the others beyond those that config.json counts: without
            them the model is not the one that was trained.
    """
    unused = set(stored.unused())
    patterns = [*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), "inv_freq$"]
    known = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    stray = sorted(name for name in unused if not known.search(name))
    used = _by_block(stored.checkpoint.locations.keys() - unused)
    further = {
        f"{path}.{number}": names
        for path, blocks in _by_block(stray).items()
        for number, names in blocks.items()
        if number not in used.get(path, {number})
    }
    for block, names in further.items():
        blocks = used[block.rpartition(".")[0]]
        if names <= set().union(*blocks.values()):
            raise ModelError(
                f"{stored.checkpoint.folder}: the weights have a block {block}, and config.json "
                f"describes a model of {len(blocks)}. Copy the config.json that belongs to them"
            )
    if not stray:
        return None
    kinds = dict.fromkeys(_kind(name, further) for name in stray)
    others = len(kinds) - _SHOWN
    more = f" and {others} other kind{'s' * (others > 1)}" if others > 0 else ""
    return (
        f"{stored.checkpoint.folder}: tensors that are no part of the model of config.json are "
        f"neither used nor pruned, and stay as they are: {', '.join([*kinds][:_SHOWN])}{more}"
    )


def _by_block(names: Iterable[str]) -> Blocks:
    """Return what each numbered block has; the rest is left out."""
    found: Blocks = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            blocks = found.setdefault(match[1], {})
            blocks.setdefault(int(match[2]), set()).add(match[3])
    return found


def _kind(name: str, further: Iterable[str]) -> str:
    """Return the name with a star for each number, or of a further block its own."""
    block = next((block for block in further if name.startswith(f"{block}.")), None)
    return f"{block}.*" if block else re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
