"""What calibration sequences are cut from: texts, or chats as the model is given them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spp_cli.config import SourceFormat, TextConfig
from spp_cli.data.conversations import conversation_example
from spp_cli.data.examples import RowFormat, example_of
from spp_cli.data.files import Row
from spp_cli.data.folders import say_passed_over
from spp_cli.data.formats import Format, format_of, is_plain_text, keys_of, rows_of, table_of
from spp_cli.data.prompts import encode_example
from spp_cli.data.row_keys import unlearnt
from spp_cli.data.text import NAMED, find, load_texts, refuse_hub_keys
from spp_cli.data.tokens import encode, encode_document
from spp_cli.errors import DataError
from spp_cli.progress import Reporter, Silent

__all__ = ["Documents", "calibration_documents"]

SECTION = "prune.calibration"


@dataclass(frozen=True)
class Documents:
    """Texts or rows in a fixed order, and how each becomes tokens: alone, and before another one.

    Rows are rendered when they are drawn, since few of a large data set are.
    """

    items: Sequence[Any]
    encode: Callable[[Any], list[int]]
    encode_whole: Callable[[Any], list[int]]
    name: str


def calibration_documents(
    config: TextConfig, form: SourceFormat, tokenizer: Any, reporter: Reporter | None = None
) -> Documents:
    """Return the documents of one source; ``auto`` for the form is what its first row tells.

    The reporter is told what was passed over.

    Raises:
        DataError: the source cannot be had, is not in the form asked for, or holds nothing.
    """
    path = None if config.source in NAMED else find(config.source, f"{SECTION}.source")
    if is_plain_text(config, path, form, "calibration"):
        form = "text"
    elif form == "auto":
        first = next(rows_of(config, path, "calibration"), None)
        form = _told_by(first, config.field, tokenizer)
    if form == "text":
        texts = load_texts(config, "calibration", demo=False, reporter=reporter)
        return Documents(
            texts.documents,
            partial(encode, tokenizer),
            partial(encode_document, tokenizer),
            texts.name,
        )
    say_passed_over(path, reporter or Silent())
    rows = _by_number(config, path)
    if not rows:
        raise DataError(f"{SECTION}.source: {config.source} holds no row. Name one that does")
    render = partial(_rendered, tokenizer, form)
    return Documents(rows, render, render, config.source)


def _by_number(config: TextConfig, path: Path | None) -> Sequence[Row]:
    """Return the rows of a source, those of files read when they are drawn."""
    if path is None:
        return list(rows_of(config, path, "calibration"))
    refuse_hub_keys(config, SECTION)
    return table_of(config, path, "calibration", with_texts=False, scratch=None)


def _told_by(row: Row | None, field: str, tokenizer: Any) -> Format:
    """Return the form of a source by its first row; what is neither is left to fail as text."""
    keys = keys_of(row) if row else set()
    form = None if field in keys else format_of(keys)
    # What a model was taught to chat in tells more of how it will be used than Alpaca's prompt.
    return "chat" if form == "alpaca" and tokenizer.chat_template else form or "text"


def _rendered(tokenizer: Any, form: RowFormat, row: Row) -> list[int]:
    if unlearnt(row, form):
        return []
    if form == "chat":
        example = conversation_example(row, tokenizer)
    else:
        example = example_of(row, form, tokenizer, SECTION, with_answers=False)
    return encode_example(example, tokenizer, train_on_prompt=True)[0] if example else []
