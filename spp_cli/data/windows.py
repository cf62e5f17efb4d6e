"""Calibration sequences cut out of documents at random: the published recipe, and its fallback."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Windows", "windows_of_documents", "windows_of_packed"]

MAX_DRAWS = 10_000  # for one sequence: C4 has a document of 8192 tokens in every 700 or so
Encode = Callable[[Any], list[int]]


@dataclass(frozen=True)
class Windows:
    """Sequences of equal length, how they were drawn, and how many tokens the drawn text has."""

    rows: list[list[int]]
    recipe: str
    tokens: int


def windows_of_documents(
    documents: Sequence[Any], encode: Encode, *, samples: int, length: int, seed: int
) -> Windows:
    """Return windows of documents longer than ``length`` tokens, drawn with replacement.

    Source: ``get_c4`` in the released code of SparseGPT and Wanda, the same draws from the same
    generator. ``encode`` gives a document's tokens. No rows if no document is long enough, or so
    few are that the draws do not come upon one; or if those drawn have fewer tokens than are asked
    for, so that the same few passages would come again and again.
    """
    generator = random.Random(seed)
    long: dict[int, list[int]] = {}
    short: set[int] = set()
    tokens = 0  # of the long ones
    places = []
    for _ in range(samples):
        for _ in range(MAX_DRAWS):
            index = generator.randint(0, len(documents) - 1)
            if index not in long and index not in short:
                ids = encode(documents[index])
                if len(ids) > length:
                    long[index] = ids
                    tokens += len(ids)
                else:
                    short.add(index)
            if index in long or len(short) == len(documents):
                break
        if index not in long:
            return Windows([], "documents", 0)
        if len(long) + len(short) == len(documents) and tokens < samples * length:
            break  # nothing more will come
        places.append((index, generator.randint(0, len(long[index]) - length - 1)))
    if tokens < samples * length:
        return Windows([], "documents", tokens)
    rows = [long[index][start : start + length] for index, start in places]
    return Windows(rows, "documents", tokens)


def windows_of_packed(
    documents: Sequence[Any], encode: Encode, *, samples: int, length: int, seed: int
) -> Windows:
    """Return windows of the shuffled documents laid end to end, in the order of their places.

    They do not overlap if the text is long enough for that, and are never the same. No rows if
    there are fewer than ``samples`` places for one.
    """
    generator = random.Random(seed)
    stream: list[int] = []
    for index in generator.sample(range(len(documents)), len(documents)):
        stream += encode(documents[index])
        if len(stream) >= 2 * samples * length:  # enough to draw from; the rest need not be read
            break
    slack = len(stream) - samples * length
    if slack >= 0:
        # Sorted places among the slack, each moved on by the windows before it, cannot overlap.
        places = sorted(generator.sample(range(slack + samples), samples))
        starts = [place + rank * (length - 1) for rank, place in enumerate(places)]
        recipe = "packed"
    elif len(stream) - length + 1 >= samples:
        starts = sorted(generator.sample(range(len(stream) - length + 1), samples))
        recipe = "packed, overlapping"
    else:
        return Windows([], "packed", len(stream))
    return Windows([stream[start : start + length] for start in starts], recipe, len(stream))
