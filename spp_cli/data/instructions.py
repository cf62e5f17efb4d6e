"""Rows to finetune on: instructions, conversations, or plain text packed into blocks."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from spp_cli.config import TextConfig, TrainingDataConfig
from spp_cli.data.examples import RowFormat, example_of
from spp_cli.data.files import Row
from spp_cli.data.formats import Format, format_of, is_plain_text, keys_of, rows_of
from spp_cli.data.prompts import IGNORED, encode_example
from spp_cli.data.text import NAMED, find, load_texts
from spp_cli.data.tokens import encode_documents, token_digest
from spp_cli.errors import DataError

__all__ = ["Rows", "pack", "training_rows"]

DEFAULT_SOURCE = "vicgalle/alpaca-gpt4"
SECTION = "finetune.data"
Purpose = Literal["train", "validation"]
Encoded = tuple[list[int], list[int]]  # ids and labels


@dataclass(frozen=True)
class Rows:
    """Token ids and labels of each row, no row longer than asked; a label of -100 has no loss.

    ``skipped`` counts the rows left out, for want of anything to learn or as copies of validation
    rows; ``truncated`` those that were cut. ``digest`` is a SHA-256 in hex over ids and labels.
    """

    input_ids: list[list[int]]
    labels: list[list[int]]
    skipped: int
    truncated: int
    digest: str
    source: str


def training_rows(
    config: TrainingDataConfig, tokenizer: Any, length: int, *, demo: bool, seed: int
) -> tuple[Rows, Rows]:
    """Return the rows to train on and those to validate on, the same for the same seed.

    Validation rows come from ``validation_source``, for the embedded texts from their own held-out
    modules, or are drawn from the source, at most every tenth. No row of training is among them.

    Raises:
        DataError: the source is not there or cannot be reached, a row is not what the format wants,
            or too few rows are left.
    """
    source = config.source
    if source == "auto":
        source = "demo" if demo else DEFAULT_SOURCE
    reader = _Reader(config, tokenizer, length, seed)
    pool = reader.read(source, "train")
    order = _draw(pool, len(pool.items), seed)
    held_out = config.validation_source or ("demo" if source == "demo" else None)
    if held_out:
        validation_pool = reader.read(held_out, "validation")
        chosen = _draw(validation_pool, config.validation_samples, seed)
    else:
        validation_pool = pool
        share = max(1, min(config.validation_samples, len(order) // 10))
        chosen, order = order[:share], order[share:]
    validation = _encode(validation_pool, chosen, length, "validate on")
    known = set(map(tuple, validation.input_ids))
    train = _encode(pool, order[: config.samples], length, "train on", known)
    return train, validation


@dataclass(frozen=True)
class _Pool:
    """What rows are chosen from: rows or blocks of a source, and how to encode one of them."""

    items: Sequence[Any]
    encode: Callable[[Any], Encoded | None]
    source: str


def _draw(pool: _Pool, most: int, seed: int) -> list[int]:
    """Return the indices of so many of the pool's items, or of all there are, in random order."""
    every = range(len(pool.items))
    return random.Random(seed).sample(every, min(most, len(every)))


def _encode(
    pool: _Pool,
    chosen: Iterable[int],
    length: int,
    purpose: str,
    excluded: Collection[tuple[int, ...]] = (),
) -> Rows:
    input_ids, all_labels, skipped, truncated = [], [], 0, 0
    for index in sorted(chosen):
        ids, labels = pool.encode(pool.items[index]) or ([], [])
        too_long = len(ids) > length
        ids, labels = ids[:length], labels[:length]
        # Each label belongs to the token before it, so that the first has none to be learnt from.
        if all(label == IGNORED for label in labels[1:]) or tuple(ids) in excluded:
            skipped += 1
            continue
        truncated += too_long
        input_ids.append(ids)
        all_labels.append(labels)
    if not input_ids:
        raise DataError(
            f"{SECTION}: {pool.source} leaves no row to {purpose}: it has {len(pool.items)}, "
            f"and {skipped} of those chosen have nothing to learn from. Give more rows, a longer "
            "sequence_length, or a validation_source"
        )
    digest = token_digest(chain.from_iterable(zip(input_ids, all_labels, strict=True)))
    return Rows(input_ids, all_labels, skipped, truncated, digest, pool.source)


@dataclass(frozen=True)
class _Reader:
    """Reads any source in the format that the configuration names, or that its rows show."""

    config: TrainingDataConfig
    tokenizer: Any
    length: int
    seed: int

    def read(self, source: str, use: Purpose) -> _Pool:
        setting = f"{SECTION}.{'source' if use == 'train' else 'validation_source'}"
        path = None if source in NAMED else find(source, setting)
        is_main = use == "train" or source == self.config.source
        text = TextConfig.model_validate(
            {
                "source": source,
                "subset": self.config.subset if is_main else None,
                "split": self.config.split if use == "train" else None,
                "field": self.config.field,
            }
        )
        form = _format(self.config, text, path, use)
        if form == "text":
            return _Pool(self._blocks(text, use), lambda ids: (ids, list(ids)), source)
        return _Pool(list(rows_of(text, path, use)), partial(self._encode, form), source)

    def _blocks(self, text: TextConfig, use: Purpose) -> list[list[int]]:
        documents = load_texts(text, use, demo=False).documents
        documents = tuple(random.Random(self.seed).sample(documents, len(documents)))
        samples, held_out = self.config.samples, self.config.validation_samples
        wanted = held_out if use == "validation" else samples and samples + held_out
        # Four times what is wanted is enough to draw from, and may be far less than all the text.
        most = wanted and 4 * wanted
        return pack(encode_documents(self.tokenizer, documents), self.length, most)

    def _encode(self, form: RowFormat, row: Row) -> Encoded | None:
        example = example_of(row, form, self.tokenizer, SECTION)
        if example is None:
            return None
        on_prompt = self.config.train_on_prompt
        return encode_example(example, self.tokenizer, train_on_prompt=on_prompt)


def _format(
    config: TrainingDataConfig, text: TextConfig, path: Path | None, use: Purpose
) -> Format:
    """Return the format as configured, or what the first row's keys tell."""
    if is_plain_text(text.source, path, config.format, use):
        return "text"
    if config.format != "auto":
        return config.format
    row = next(rows_of(text, path, use), None)
    if row is None:
        raise DataError(f"{SECTION}: {text.source} holds no row. Name a source that does")
    keys = keys_of(row)
    if form := format_of(keys):
        return form
    if text.field in keys:
        return "text"
    raise DataError(
        f"{row.place}: keys {', '.join(sorted(keys)) or 'none'} tell no format. Allowed: "
        "instruction, input and output; messages or conversations; prompt and completion; "
        f"prompt, chosen and rejected; {text.field} (set {SECTION}.field for another)"
    )


def pack(
    documents: Iterable[Sequence[int]], length: int, most: int | None = None
) -> list[list[int]]:
    """Return the documents' tokens end to end, cut into blocks of ``length``, ``most`` at most.

    The last block may be shorter; a single token left over, which predicts nothing, is dropped.
    """
    tokens = chain.from_iterable(documents)
    stream = list(islice(tokens, most * length) if most else tokens)
    blocks = [stream[start : start + length] for start in range(0, len(stream), length)]
    return blocks[:-1] if blocks and len(blocks[-1]) == 1 else blocks
