"""The rows that finetune trains on: tokenized once for a workspace, told of, and previewed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spp_cli import processes
from spp_cli.config import SppConfig
from spp_cli.data.instructions import choose, copies_of, enough, tokenized
from spp_cli.data.packing import PackedRows
from spp_cli.data.pools import Wanted
from spp_cli.data.preview import preview
from spp_cli.data.row_store import AskedRows, KeptRows
from spp_cli.data.token_rows import Rows
from spp_cli.data.tokens import check_vocabulary, resolve_length
from spp_cli.fingerprint import folder_digest
from spp_cli.models.checkpoint import read_config, tokenizer_files
from spp_cli.models.loading import load_config, load_tokenizer
from spp_cli.progress import Reporter
from spp_cli.stages.stage import Sources
from spp_cli.training.packing import check_packing

__all__ = ["TrainingData", "preview_rows", "training_data"]


@dataclass(frozen=True)
class TrainingData:
    """What the Trainer is given: rows, or sequences of several, and the rows to validate on.

    Validation rows are never packed, so that losses with and without packing compare.
    """

    train: Rows | PackedRows
    validation: Rows

    def described(self) -> dict[str, Any]:
        """Return what there is to say of both, for the manifest."""
        rows, packing = self.train, {}
        if isinstance(rows, PackedRows):
            packing = {"sequences": len(rows), "fill": round(rows.fill, 4)}
            rows = rows.rows
        return {
            "train": {**rows.described(), **packing},
            "validation": self.validation.described(),
        }


def training_data(
    config: SppConfig, sources: Sources, model: Any, reporter: Reporter
) -> TrainingData:
    """Return the rows of ``config.finetune.data`` for a pruned model, and say what they are.

    Of several processes the main one tokenizes, and the others find what it has stored.

    Raises:
        DataError: they are not stored yet, and cannot be had from their sources.
        ConfigError: they are to be packed, and the model would not hold them apart.
    """
    asked = _asked(config, sources, sources.stages["prune"], model.config)
    with processes.main_first():
        kept = sources.rows.rows(asked, reporter)
    for rows in (kept.train, kept.validation):
        check_vocabulary(int(rows.tokens.max()), model.config)
    train: Rows | PackedRows = kept.train
    if config.finetune.data.packing and kept.train.account.form != "text":
        check_packing(model)
        train = PackedRows(kept.train, asked.wanted.length)
    reporter.say(f"data: {_summary(kept, train)}")
    return TrainingData(train, kept.validation)


def preview_rows(
    config: SppConfig, sources: Sources, folder: Path, reporter: Reporter, *, count: int
) -> dict[str, Any]:
    """Return the first ``count`` rows that finetune would train on, as the model sees them.

    Nothing of the model is read but its config and tokenizer, which lie in ``folder``.

    Raises:
        DataError: the rows cannot be had from their sources.
    """
    read_config(folder)
    model_config = load_config(folder, trust_remote_code=config.model.trust_remote_code)
    asked = _asked(config, sources, folder, model_config)
    train, validation = choose(asked.wanted, reporter)
    held_out = copies_of(tokenized(validation, "validate on", (), reporter))
    examples, left_out, unread = [], Counter[str](), Counter[str]()
    for row in train.encoded(held_out):
        unread.update(row.unread)
        if row.left_out:
            left_out[row.left_out] += 1
        else:
            examples.append(preview(row, asked.wanted.tokenizer))
        if len(examples) == count:
            break
    return {
        "source": train.pool.source,
        "format": train.pool.form,
        "length": asked.wanted.length,
        "packing": config.finetune.data.packing and train.pool.form != "text",
        "left_out": dict(left_out),
        "unread_keys": dict(sorted(unread.items())),
        "rows": examples,
    }


def _asked(config: SppConfig, sources: Sources, folder: Path, model_config: Any) -> AskedRows:
    settings = config.finetune
    length = resolve_length(
        settings.data.sequence_length, model_config, setting="finetune.data.sequence_length"
    )
    wanted = Wanted(
        settings.data,
        load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code),
        length,
        config.seed,
        sources.demo,
        _most(config),
    )
    files = tokenizer_files(folder)
    return AskedRows(wanted, folder_digest(folder, files, sources.rows.digest_cache))


def _most(config: SppConfig) -> int | None:
    """Return how many rows are worth tokenizing; None: all."""
    settings = config.finetune
    if settings.max_steps is None:
        return None
    at_once = settings.batch_size * settings.gradient_accumulation_steps * processes.count()
    rows = settings.max_steps * at_once
    # How many rows a packed sequence takes is not known yet; it is seldom more.
    return enough(16 * rows if settings.data.packing else rows)


def _summary(kept: KeptRows, train: Rows | PackedRows) -> str:
    account = kept.train.account
    text = f"{len(kept.train):,} rows of {account.source}{account}"
    if account.form == "preference":
        text += ", of each pair what was chosen"
    if isinstance(train, PackedRows):
        text += f", in {len(train):,} sequences that are {train.fill:.0%} full"
    text += f"; {len(kept.validation):,} rows to validate on{kept.validation.account}"
    return text if kept.is_new else f"{text}; tokenized before"
