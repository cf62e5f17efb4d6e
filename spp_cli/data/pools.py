"""What rows to finetune on are drawn from: a source read in its format, or its text in blocks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from spp_cli.config import TextConfig, TrainingDataConfig
from spp_cli.data.examples import RowFormat, example_of
from spp_cli.data.files import Row
from spp_cli.data.folders import say_passed_over
from spp_cli.data.formats import (
    Format,
    format_of,
    hub_set,
    is_in_hub_layout,
    is_plain_text,
    keys_of,
    table_of,
)
from spp_cli.data.hub import hub_stream
from spp_cli.data.prompts import Example, encode_examples
from spp_cli.data.row_keys import unlearnt, unread_keys
from spp_cli.data.text import (
    NAMED,
    find,
    how_to_supply,
    load_texts,
    refuse_hub_keys,
    strings_of,
)
from spp_cli.data.token_rows import Account, RowWriter
from spp_cli.data.tokens import encode_documents
from spp_cli.errors import DataError
from spp_cli.progress import Reporter, Silent

__all__ = ["SECTION", "Encode", "Item", "Pool", "PoolReader", "Wanted", "draws", "pack"]

SECTION = "finetune.data"
Purpose = Literal["train", "validation"]


class Item(NamedTuple):
    """What becomes of a row: its place, its ids and labels.

    ``left_out`` is why the row itself says that it is not to be learnt, or nothing; ``unread`` the
    keys of which nothing is made.
    """

    place: str
    ids: list[int]
    labels: list[int]
    left_out: str = ""
    unread: Sequence[str] = ()


Encode = Callable[[Sequence[Any]], list[Item]]


@dataclass(frozen=True)
class Pool:
    """What rows are drawn from: rows or blocks of a source, and how to encode some of them.

    An item in which there is nothing to learn has no ids.
    """

    items: Sequence[Any]
    encode: Encode
    source: str
    form: Format


@dataclass(frozen=True)
class Wanted:
    """Everything that decides training rows: the settings, the tokenizer, length and seed.

    ``demo`` says that the model is the embedded one; ``most`` is how many rows training can use,
    None for all. ``scratch`` is the folder of unnamed files, by default the system's temporary one.
    """

    config: TrainingDataConfig
    tokenizer: Any
    length: int
    seed: int
    demo: bool
    most: int | None = None
    scratch: Path | None = None

    @property
    def samples(self) -> int | None:
        """How many rows are drawn at most; None: all."""
        return min(filter(None, (self.config.samples, self.most)), default=None)


@dataclass(frozen=True)
class PoolReader:
    """Reads any source in the format that the configuration names, or that its rows show.

    The reporter is told what is passed over.
    """

    wanted: Wanted
    reporter: Reporter = field(default_factory=Silent)

    @property
    def config(self) -> TrainingDataConfig:
        """The settings."""
        return self.wanted.config

    def read(self, source: str, use: Purpose) -> Pool:
        """Return what is to be drawn from a source.

        Raises:
            DataError: it is not there or cannot be reached, or is in no known format.
        """
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
        say_passed_over(path, self.reporter)
        if is_plain_text(text, path, self.config.format, use):
            refuse_hub_keys(text, SECTION)
            return self._blocks(self._documents(text, path, use), source, use)
        is_on_hub = path is None or is_in_hub_layout(text, path)
        if self.config.streaming and is_on_hub:
            return self._read_stream(text, path, use)
        table = table_of(text, path, use, with_texts=False, scratch=self.wanted.scratch)
        form = self._form(text, table[0] if table else None)
        if form == "text":
            return self._blocks(self._documents(text, path, use), source, use)
        return Pool(table, self._encoder(form), source, form)

    def _read_stream(self, text: TextConfig, path: Path | None, use: Purpose) -> Pool:
        if self.wanted.samples is None:
            raise DataError(
                f"{SECTION}.streaming reads no more of a data set than is asked for. "
                f"Set {SECTION}.samples or finetune.max_steps"
            )
        split = hub_set(text, use)
        remedy = how_to_supply(split.name, SECTION)
        stream = hub_stream(split, folder=path, remedy=remedy, seed=self.wanted.seed)
        first = next(stream, None)
        form = self._form(text, first)
        rows = chain([first] if first else [], stream)
        if form == "text":
            return self._blocks(self._texts(rows), text.source, use)
        held_out = self.config.validation_samples
        most = held_out if use == "validation" else self.wanted.samples + held_out
        return Pool(list(islice(rows, most)), self._encoder(form), text.source, form)

    def _form(self, text: TextConfig, first: Row | None) -> Format:
        """Return the format as configured, or what the first row's keys tell."""
        if first is None:
            raise DataError(f"{SECTION}: {text.source} holds no row. Name a source that does")
        if self.config.format != "auto":
            return self.config.format
        keys = keys_of(first)
        if form := format_of(keys):
            return form
        if text.field in keys:
            return "text"
        raise DataError(
            f"{first.place}: keys {', '.join(sorted(keys)) or 'none'} tell no format. Allowed: "
            "instruction, input and output; messages or conversations; prompt and completion; "
            f"prompt, chosen and rejected; {text.field} (set {SECTION}.field for another)"
        )

    def _encoder(self, form: RowFormat) -> Encode:
        tokenizer, on_prompt = self.wanted.tokenizer, self.config.train_on_prompt

        def example(row: Row) -> Example | None:
            return example_of(row, form, tokenizer, SECTION, with_answers=not on_prompt)

        def encode(rows: Sequence[Row]) -> list[Item]:
            reasons = [unlearnt(row, form) for row in rows]
            examples = [
                None if reason else example(row) for row, reason in zip(rows, reasons, strict=True)
            ]
            useful = list(filter(None, examples))
            encoded = iter(encode_examples(useful, tokenizer, train_on_prompt=on_prompt))
            return [
                Item(
                    row.place,
                    *(next(encoded) if example else ([], [])),
                    left_out=reason,
                    unread=unread_keys(row, form, tokenizer),
                )
                for row, example, reason in zip(rows, examples, reasons, strict=True)
            ]

        return encode

    def _documents(self, text: TextConfig, path: Path | None, use: Purpose) -> Iterator[str]:
        """Return the documents of a source in random order."""
        if text.source in NAMED:
            documents = load_texts(text, use, demo=False).documents
            return iter(random.Random(self.wanted.seed).sample(documents, len(documents)))
        table = table_of(text, path, use, with_texts=True, scratch=self.wanted.scratch)
        return self._texts(table[number] for number in draws(len(table), self.wanted.seed))

    def _texts(self, rows: Iterable[Row]) -> Iterator[str]:
        texts = strings_of(rows, self.config.field, SECTION, self.reporter)
        return (text for text in texts if text.strip())

    def _blocks(self, documents: Iterable[str], source: str, use: Purpose) -> Pool:
        samples, held_out = self.wanted.samples, self.config.validation_samples
        count = held_out if use == "validation" else samples and samples + held_out
        # Four times what is wanted is enough to draw from, and may be far less than all the text.
        most = count and 4 * count
        writer = RowWriter(self.wanted.scratch)
        tokens = encode_documents(self.wanted.tokenizer, documents)
        for block in pack(tokens, self.wanted.length, most):
            writer.add(block, block)
        if not len(writer):
            raise DataError(f"{SECTION}.source: {source} holds no text. Name one that does")
        blocks = writer.rows(Account(source, "text", len(writer)))

        def encode(numbers: Sequence[int]) -> list[Item]:
            found = ((number, blocks[number]) for number in numbers)
            return [
                Item(f"{source} block {number + 1}", block["input_ids"], block["labels"])
                for number, block in found
            ]

        return Pool(range(len(blocks)), encode, source, "text")


def pack(
    documents: Iterable[Sequence[int]], length: int, most: int | None = None
) -> Iterator[list[int]]:
    """Yield the documents' tokens end to end, cut into blocks of ``length``, ``most`` at most.

    The last block may be shorter; a single token left over, which predicts nothing, is dropped.
    """
    tokens = chain.from_iterable(documents)
    blocks = iter(lambda: list(islice(tokens, length)), [])
    return (block for block in islice(blocks, most) if len(block) > 1)


def draws(count: int, seed: int, most: int | None = None) -> Iterator[int]:
    """Yield the numbers below ``count`` in random order, the first ``most`` or all.

    The order is that of ``random.Random(seed).sample(range(count), count)``, which would hold them
    all in memory.
    """
    generator = random.Random(seed)
    moved: dict[int, int] = {}  # what stands in a place that is not its own number
    for last in range(count - 1, count - 1 - min(count, most or count), -1):
        place = generator.randrange(last + 1)
        yield moved.get(place, place)
        moved[place] = moved.pop(last, last)
