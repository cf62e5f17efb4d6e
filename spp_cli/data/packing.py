"""Several short rows in one sequence, each with positions of its own, so that none sees another."""

from __future__ import annotations

from collections.abc import Sequence

from spp_cli.data.prompts import IGNORED
from spp_cli.data.token_rows import Rows

__all__ = ["PackedRows", "best_fit"]


class PackedRows:
    """Rows put together into sequences of at most ``length`` tokens.

    Positions begin anew with each row; by that transformers tells rows from one another and holds
    their attention apart, as long as it is given no attention mask.
    """

    def __init__(self, rows: Rows, length: int) -> None:
        self.rows = rows
        self.length = length
        self.members = best_fit(rows.lengths.tolist(), length)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Return ``input_ids``, ``labels`` and ``position_ids`` of one sequence."""
        packed: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
        for member in self.members[index]:
            row = self.rows[member]
            packed["input_ids"] += row["input_ids"]
            # What comes first is not to be learnt from the end of the row before.
            packed["labels"] += [IGNORED, *row["labels"][1:]]
            packed["position_ids"] += range(len(row["input_ids"]))
        return packed

    @property
    def fill(self) -> float:
        """The share of the sequences' room that tokens take, between 0 and 1."""
        return len(self.rows.tokens) / (len(self) * self.length)


def best_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Return which of the ``sizes`` go together, by number, so that no sum exceeds ``room``.

    The largest come first, each where it leaves the least room over (best fit decreasing): at most
    11/9 as many sequences as the best packing needs, and one more.
    """
    groups: list[list[int]] = []
    having: list[list[int]] = [[] for _ in range(room + 1)]  # groups by the room they have left
    some = 0  # bit r: there is a group with room r
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        size = sizes[number]
        fitting = some >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1  # the lowest bit that is set
            group = having[left].pop()
            if not having[left]:
                some &= ~(1 << left)
        else:
            left, group = room, len(groups)
            groups.append([])
        groups[group].append(number)
        left -= size
        having[left].append(group)
        some |= 1 << left
    return groups
