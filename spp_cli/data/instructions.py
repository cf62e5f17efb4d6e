"""Rows to finetune on: which of a source are drawn, and what becomes of each of them."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

from spp_cli.data.pools import SECTION, Item, Pool, PoolReader, Wanted, draws
from spp_cli.data.prompts import IGNORED
from spp_cli.data.token_rows import Account, Rows, RowWriter
from spp_cli.errors import DataError
from spp_cli.progress import Reporter

__all__ = [
    "Chosen",
    "Encoded",
    "choose",
    "copies_of",
    "enough",
    "tokenized",
    "training_rows",
]

DEFAULT_SOURCE = "vicgalle/alpaca-gpt4"
EMPTY, TOO_LONG, NOTHING, COPY = (
    "empty",
    "too long to reach an answer",
    "with nothing to learn",
    "copies of validation rows",
)
_AT_ONCE = 64  # rows that are tokenized together
_MANY = 20_000  # rows that take more than a few seconds
_FEW = 2**14  # rows that take no more than that


def training_rows(wanted: Wanted, reporter: Reporter) -> tuple[Rows, Rows]:
    """Return the rows to train on and those to validate on, the same for the same seed.

    The reporter is told how far it is, if there are many.

    Raises:
        DataError: the source is not there or cannot be reached, a row is not what the format wants,
            or too few rows are left.
    """
    train, validation = choose(wanted, reporter)
    held_out = tokenized(validation, "validate on", (), reporter)
    return tokenized(train, "train on", copies_of(held_out), reporter), held_out


def copies_of(rows: Rows) -> set[tuple[int, ...]]:
    """Return what a row must not be, to be none of ``rows``."""
    return {tuple(rows[index]["input_ids"]) for index in range(len(rows))}


def enough(rows: int) -> int:
    """Return how many rows are tokenized where ``rows`` are the most that training can use.

    The next power of two, so that trainings of nearly the same length share their rows; and no
    fewer than take a few seconds.
    """
    return max(1 << (rows - 1).bit_length(), _FEW)


@dataclass(frozen=True)
class Encoded:
    """A row as the model sees it, cut to the length.

    ``tokens`` is how many it had; ``left_out`` why it is not used, or nothing; ``unread`` are the
    keys of the row of which nothing is made.
    """

    place: str
    ids: list[int]
    labels: list[int]
    tokens: int
    left_out: str
    unread: Sequence[str] = ()


@dataclass(frozen=True)
class Chosen:
    """The numbers of those items of a pool that are drawn, in order."""

    pool: Pool
    numbers: Sequence[int]
    wanted: Wanted

    def encoded(self, excluded: Collection[tuple[int, ...]] = ()) -> Iterator[Encoded]:
        """Yield each, with the reason if it is of no use: to be ``excluded`` is one."""
        length = self.wanted.length
        for item in self._encoded():
            whole = item.ids
            ids, labels = whole[:length], item.labels[:length]
            left_out = item.left_out
            if left_out:
                pass
            elif not ids:
                left_out = EMPTY
            # Each label belongs to the token before it: the first has none to be learnt from.
            elif all(label == IGNORED for label in labels[1:]):
                left_out = TOO_LONG if len(whole) > length else NOTHING
            elif excluded and tuple(ids) in excluded:
                left_out = COPY
            yield Encoded(item.place, ids, labels, len(whole), left_out, item.unread)

    def _encoded(self) -> Iterator[Item]:
        for first in range(0, len(self.numbers), _AT_ONCE):
            numbers = self.numbers[first : first + _AT_ONCE]
            yield from self.pool.encode([self.pool.items[number] for number in numbers])


def tokenized(
    chosen: Chosen, purpose: str, excluded: Collection[tuple[int, ...]], reporter: Reporter
) -> Rows:
    """Return the rows of ``chosen`` that are of use for the ``purpose``, and none ``excluded``.

    Raises:
        DataError: there are none.
    """
    writer, truncated = RowWriter(chosen.wanted.scratch), 0
    skipped, unread = Counter[str](), Counter[str]()
    total = len(chosen.numbers)
    with reporter.task("tokenize", total, "rows") if total > _MANY else nullcontext() as task:
        for row in chosen.encoded(excluded):
            if task is not None:
                task.advance()
            unread.update(row.unread)
            if row.left_out:
                skipped[row.left_out] += 1
                continue
            truncated += row.tokens > len(row.ids)
            writer.add(row.ids, row.labels)
    pool = chosen.pool
    counts = (dict(sorted(counter.items())) for counter in (skipped, unread))
    account = Account(pool.source, pool.form, total, truncated, *counts)
    if not len(writer):
        raise DataError(
            f"{SECTION}: {pool.source} leaves no row to {purpose}: it has {len(pool.items)}, "
            f"and of those chosen none is of use{account}. Give more rows, a longer "
            "sequence_length, or a validation_source"
        )
    return writer.rows(account)


def choose(wanted: Wanted, reporter: Reporter) -> tuple[Chosen, Chosen]:
    """Return what is drawn to train on and to validate on, before any of it is tokenized.

    Validation rows come from ``validation_source``, for the embedded texts from their own held-out
    modules, or are drawn from the source, at most every tenth. None of them is trained on. The
    reporter is told what is passed over of a source.

    Raises:
        DataError: a source is not there or cannot be reached, or is in no known format.
    """
    config, seed, samples = wanted.config, wanted.seed, wanted.samples
    source = config.source
    if source == "auto":
        source = "demo" if wanted.demo else DEFAULT_SOURCE
    reader = PoolReader(wanted, reporter)
    pool = reader.read(source, "train")
    count = len(pool.items)
    separate = config.validation_source or ("demo" if source == "demo" else None)
    if separate:
        held_out = reader.read(separate, "validation")
        every = range(len(held_out.items))
        chosen = random.Random(seed).sample(every, min(config.validation_samples, len(every)))
    else:
        held_out = pool
        chosen = list(draws(count, seed, max(1, min(config.validation_samples, count // 10))))
    before = 0 if separate else len(chosen)
    if samples is None:
        taken = set() if separate else set(chosen)
        numbers = array("q", (number for number in range(count) if number not in taken))
    else:
        drawn = islice(draws(count, seed), before, before + samples)
        numbers = array("q", sorted(drawn))
    return Chosen(pool, numbers, wanted), Chosen(held_out, sorted(chosen), wanted)
