"""The rows that finetune trains on: tokenized once for a workspace, and told of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spp_cli import processes
from spp_cli.config import SppConfig
from spp_cli.data.instructions import enough
from spp_cli.data.row_store import AskedRows, KeptRows
from spp_cli.data.token_rows import Rows
from spp_cli.data.tokens import check_vocabulary, resolve_length
from spp_cli.fingerprint import folder_digest
from spp_cli.models.checkpoint import tokenizer_files
from spp_cli.models.loading import load_tokenizer
from spp_cli.progress import Reporter
from spp_cli.stages.stage import Sources

__all__ = ["TrainingData", "training_data"]


@dataclass(frozen=True)
class TrainingData:
    """The rows to train on and those to validate on."""

    train: Rows
    validation: Rows

    def described(self) -> dict[str, Any]:
        """Return what there is to say of both, for the manifest."""
        return {"train": self.train.described(), "validation": self.validation.described()}


def training_data(
    config: SppConfig, sources: Sources, model: Any, reporter: Reporter
) -> TrainingData:
    """Return the rows of ``config.finetune.data`` for a pruned model, and say what they are.

    Of several processes the main one tokenizes, and the others find what it has stored.

    Raises:
        DataError: they are not stored yet, and cannot be had from their sources.
    """
    asked = _asked(config, sources, sources.stages["prune"], model.config)
    with processes.main_first():
        kept = sources.rows.rows(asked, reporter)
    for rows in (kept.train, kept.validation):
        check_vocabulary(int(rows.tokens.max()), model.config)
    reporter.say(f"data: {_summary(kept)}")
    return TrainingData(kept.train, kept.validation)


def _asked(config: SppConfig, sources: Sources, folder: Path, model_config: Any) -> AskedRows:
    settings = config.finetune
    length = resolve_length(
        settings.data.sequence_length, model_config, setting="finetune.data.sequence_length"
    )
    return AskedRows(
        settings.data,
        load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code),
        folder_digest(folder, tokenizer_files(folder), sources.rows.digest_cache),
        length,
        config.seed,
        sources.demo,
        _most(config, length),
    )


def _most(config: SppConfig, length: int) -> int | None:
    """Return how many rows are worth tokenizing; None: all."""
    settings = config.finetune
    if settings.max_steps is None:
        return None
    at_once = settings.batch_size * settings.gradient_accumulation_steps * processes.count()
    return enough(settings.max_steps * at_once, length)


def _summary(kept: KeptRows) -> str:
    account = kept.train.account
    text = f"{len(kept.train):,} rows of {account.source}{account}"
    if account.form == "preference":
        text += ", of each pair what was chosen"
    text += f"; {len(kept.validation):,} rows to validate on{kept.validation.account}"
    return text if kept.is_new else f"{text}; tokenized before"
