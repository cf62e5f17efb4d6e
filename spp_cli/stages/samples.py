"""What the models of a run write after the same words: dense, pruned, and as it was in the end."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

from spp_cli.config import SppConfig
from spp_cli.data.tokens import encode
from spp_cli.errors import DataError
from spp_cli.evaluation.results import evaluation_text
from spp_cli.generation import Decoding, continuation
from spp_cli.models.checkpoint import is_demo_family
from spp_cli.models.context import context_of
from spp_cli.models.loading import load_tokenizer
from spp_cli.progress import Reporter
from spp_cli.stages.stage import Sources
from spp_cli.stages.stage_model import distinct_stages, loader

__all__ = ["first_lines", "samples"]

_LINES, _TOKENS = 4, 96  # a prompt is at most so long


def samples(
    config: SppConfig,
    sources: Sources,
    reporter: Reporter,
    *,
    prompts: Sequence[str],
    new_tokens: int = 48,
) -> dict[str, Any]:
    """Return ``prompts`` and, in ``models`` by stage, the text that follows each of them.

    The most likely token is taken every time, ``new_tokens`` times at most. Without ``prompts``
    they are first lines of the text that perplexity is measured on. The stages are those that
    ``distinct_stages`` gives.

    Raises:
        DataError: no prompts were given, and that text cannot be had.
        ModelError: a model cannot be loaded.
    """
    stages = distinct_stages(sources)
    trusted = config.model.trust_remote_code
    tokenizer = load_tokenizer(sources.model, trust_remote_code=trusted)
    chosen = list(prompts) or _from_the_text(config, sources, tokenizer)
    decoding = Decoding(new_tokens)
    written: dict[str, list[str]] = {}
    with reporter.task("samples", len(stages) * len(chosen), "texts") as progress:
        for stage in stages:
            model = loader(config, sources, stage)()
            written[stage] = []
            for prompt in chosen:
                written[stage].append(_continue(model, tokenizer, prompt, decoding))
                progress.advance(1, stage)
            del model
            gc.collect()
    return {"prompts": chosen, "models": written, "new_tokens": new_tokens}


def _from_the_text(config: SppConfig, sources: Sources, tokenizer: Any) -> list[str]:
    """Return the first lines of three pieces of the text, evenly spread."""
    demo = is_demo_family(sources.model)
    tokens = evaluation_text(config, tokenizer, sources.model, demo).tokens
    every = max(1, len(tokens) // 3)
    pieces = [
        tokenizer.decode(row[:_TOKENS], skip_special_tokens=True) for row in tokens[::every][:3]
    ]
    found = [first_lines(piece, whole=not place) for place, piece in enumerate(pieces)]
    if not (found := [prompt for prompt in dict.fromkeys(found) if prompt.strip()]):
        raise DataError(
            "the text of eval.perplexity.source begins with no words to go on from. "
            "Give some with --prompt"
        )
    return found


def first_lines(text: str, *, whole: bool) -> str:
    """Return the first lines of ``text`` that are all there, or words, if it is one line.

    ``whole``: the first line is not the rest of one that began before.
    """
    lines = text.splitlines(keepends=True)
    if not whole and len(lines) > 2:
        del lines[0]
    if len(lines) > 1:
        return "".join(lines[:-1][:_LINES])
    return text.rpartition(" ")[0] or text


def _continue(model: Any, tokenizer: Any, prompt: str, decoding: Decoding) -> str:
    """Return what the model writes after the end of ``prompt``, as far back as it can see."""
    context = context_of(model.config) or 2**30
    tokens = encode(tokenizer, prompt)[-max(1, context - decoding.max_new_tokens) :]
    return continuation(model, tokenizer, tokens, decoding).text
