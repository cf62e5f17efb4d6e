"""spp calibrate, and what prune does of it by itself: any source to token tensors, drawn once."""

from __future__ import annotations

from typing import Any

from spp_cli.config import SppConfig
from spp_cli.data.token_store import Asked, Kept
from spp_cli.data.tokens import check_vocabulary, resolve_length
from spp_cli.fingerprint import folder_digest
from spp_cli.models.checkpoint import read_config, tokenizer_files
from spp_cli.models.loading import load_config, load_tokenizer
from spp_cli.progress import Reporter
from spp_cli.stages.stage import Sources

__all__ = ["calibration", "run"]

_SHORT = 160  # characters of a sequence that a preview shows


def run(config: SppConfig, sources: Sources, reporter: Reporter, *, preview: int) -> dict[str, Any]:
    """Return where the calibration tokens of ``config.prune`` are kept, and what is in there.

    ``preview`` is the number of sequences whose beginnings are told as text.
    """
    read_config(sources.model)
    model_config = load_config(sources.model, trust_remote_code=config.model.trust_remote_code)
    asked = _asked(config, sources, model_config)
    kept = _kept(asked, sources, model_config, reporter)
    return {
        "path": str(kept.path),
        "is_new": kept.is_new,
        **kept.tokens.described(),
        "seed": config.prune.calibration.seed,
        "tokenizer": asked.tokenizer_digest,
        "preview": [
            _shortened(asked.tokenizer.decode(ids)) for ids in kept.tokens.tokens[:preview].tolist()
        ],
    }


def calibration(config: SppConfig, sources: Sources, model_config: Any, reporter: Reporter) -> Kept:
    """Return the calibration tokens of ``config.prune`` for a model.

    Raises:
        DataError: they are not kept yet, and their text cannot be had or is too short.
    """
    return _kept(_asked(config, sources, model_config), sources, model_config, reporter)


def _asked(config: SppConfig, sources: Sources, model_config: Any) -> Asked:
    settings = config.prune.calibration
    length = resolve_length(
        settings.sequence_length, model_config, setting="prune.calibration.sequence_length"
    )
    tokenizer = load_tokenizer(sources.model, trust_remote_code=config.model.trust_remote_code)
    files = tokenizer_files(sources.model)
    digest = folder_digest(sources.model, files, sources.store.digest_cache)
    return Asked(settings, tokenizer, digest, length, sources.demo)


def _kept(asked: Asked, sources: Sources, model_config: Any, reporter: Reporter) -> Kept:
    kept = sources.store.tokens(asked, reporter)
    check_vocabulary(int(kept.tokens.tokens.max()), model_config)
    samples, length = kept.tokens.tokens.shape
    before = "" if kept.is_new else ", drawn before"
    reporter.say(f"calibration: {samples} × {length} tokens of {kept.tokens.source}{before}")
    return kept


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHORT else f"{line[: _SHORT - 1]}…"
