"""spp generate: what models write after a prompt, side by side."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spp_cli.commands.command import (
    Command,
    Given,
    asked,
    chosen_stages,
    flag_parameter,
    workspace_of,
)
from spp_cli.commands.parameters import WORKSPACE, argument, count, option, switch
from spp_cli.errors import ConfigError
from spp_cli.flags import FLAGS
from spp_cli.foreign import printable
from spp_cli.named_models import NamedModel, find, folder_model, run_models
from spp_cli.progress import Reporter
from spp_cli.reporting.answer import Answer
from spp_cli.reporting.side_by_side import side_by_side, terminal_width
from spp_cli.reporting.tables import TITLES
from spp_cli.status import MODELS

if TYPE_CHECKING:
    from spp_cli.generation import Decoding

__all__ = ["GENERATE"]


def _generate(given: Given, reporter: Reporter) -> Answer:
    prompt = _prompt(given["prompt"])
    if not math.isfinite(given["temperature"]):
        raise ConfigError(f"--temperature is {given['temperature']}; must be a number from 0")
    models = _models(given, reporter)
    from spp_cli.generation import Decoding

    decoding = Decoding(given["max_new_tokens"], given["temperature"], given["seed"])
    written = []
    with reporter.task("generate", len(models), "models") as progress:
        for model in models:
            written.append(_written(model, prompt, given["chat"], decoding))
            progress.advance(1, model.name)
    document = {"prompt": prompt, "chat": given["chat"], **vars(decoding), "models": written}
    return Answer(document, _text(models, written))


def _prompt(given: str) -> str:
    """Return the prompt as it is; of ``-`` what stdin holds, its last newline included."""
    try:
        prompt = (sys.stdin.buffer.read() if given == "-" else os.fsencode(given)).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the prompt is no text in UTF-8: {error}") from error
    if not prompt.strip():
        raise ConfigError("the prompt is empty. Give some words that the models go on from")
    return prompt


def _models(given: Given, reporter: Reporter) -> list[NamedModel]:
    workspace, flags = workspace_of(given), asked(FLAGS["generate"], given)
    stages = chosen_stages(given, MODELS)
    models = []
    for path in [given["path"], *(given["others"] or [])]:
        place = find(workspace, path)
        if stages and (place.stage or place.run is None):
            raise ConfigError(
                f"--stage chooses among the stages of a run, and {path} is one model. "
                "Leave --stage out, and write RUN/STAGE"
            )
        if place.run:
            wanted = [place.stage] if place.stage else stages
            models += run_models(place.run, wanted, flags, reporter)
        else:
            models.append(folder_model(path, flags))
    return models


def _written(model: NamedModel, prompt: str, chat: bool, decoding: Decoding) -> dict[str, Any]:
    """Return what one model writes, which is in memory only meanwhile."""
    import gc

    from spp_cli.data.conversations import chat_prompt
    from spp_cli.data.tokens import check_vocabulary, encode
    from spp_cli.generation import continuation
    from spp_cli.models.context import context_of
    from spp_cli.models.loading import load_config, load_tokenizer

    trusted = model.config.model.trust_remote_code
    tokenizer = load_tokenizer(model.folder, trust_remote_code=trusted)
    text = chat_prompt(prompt, tokenizer) if chat else prompt
    tokens = encode(tokenizer, text, special=not chat)  # a template writes special ones itself
    model_config = load_config(model.folder, trust_remote_code=trusted)
    check_vocabulary(max(tokens, default=0), model_config)  # before it is loaded
    context = context_of(model_config)
    if context and len(tokens) + decoding.max_new_tokens > context:
        raise ConfigError(
            f"the prompt has {len(tokens)} tokens, and with --max-new-tokens "
            f"{decoding.max_new_tokens} that is more than the {context} that {model.name} sees. "
            "Shorten the prompt, or lower --max-new-tokens"
        )
    found = continuation(model.load(), tokenizer, tokens, decoding)
    gc.collect()
    return {
        "model": model.name,
        "stage": model.stage,
        "folder": str(model.folder),
        "prompt_tokens": len(tokens),
        "new_tokens": found.tokens,
        "text": found.text,
    }


def _text(models: Sequence[NamedModel], written: Sequence[dict[str, Any]]) -> str:
    if len(models) == 1:
        return printable(written[0]["text"])
    runs = {model.name.rpartition("/")[0] if model.stage else model.name for model in models}
    titles = [
        TITLES[model.stage] if model.stage and len(runs) == 1 else model.name for model in models
    ]
    texts = {title: each["text"] for title, each in zip(titles, written, strict=True)}
    return side_by_side(texts, terminal_width())


GENERATE = Command(
    [
        argument("path", "A run, RUN/STAGE, a model's folder or hub id", metavar="PATH"),
        argument("prompt", "What the models go on from; - reads it from stdin", metavar="PROMPT"),
        argument("others", "More models beside it", metavar="[PATH]...", kind=list[str] | None),
        option("stage", "Of a run only these: dense, prune, finetune, merge", metavar="STAGE,..."),
        count("max_new_tokens", "Tokens written at most", default=64),
        option(
            "temperature",
            "Draw each token at this temperature; default: always the most likely one",
            metavar="NUMBER",
            kind=float,
            default=0.0,
            min=0.0,
        ),
        option("seed", "Seed of the draws", metavar="INTEGER", kind=int, default=0),
        switch("chat", "Put the prompt into the tokenizer's chat template, as a user's message"),
        *map(flag_parameter, FLAGS["generate"]),
        WORKSPACE,
    ],
    _generate,
)
