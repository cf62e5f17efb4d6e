"""What a model scores in all that is asked for, each number measured once.

Results are kept by all that decides them: the model's digest, the kind of device, and the digest of
the text; or of a task the definition, its version and number of examples included, the questions,
the limit, the chat template and the harness; and the versions of what computes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from spp_cli.adapters.adapter import AdaptedLinear
from spp_cli.config import SppConfig
from spp_cli.data.stdlib import missing_modules
from spp_cli.data.tokens import TokenSet, evaluation_tokens, resolve_length
from spp_cli.evaluation.harness import (
    ZEROSHOT,
    check_chat_template,
    evaluate_task,
    harness_version,
    load_tasks,
    zeroshot_mean,
)
from spp_cli.evaluation.perplexity import PARTS, perplexity
from spp_cli.fingerprint import arithmetic, canonical_json, sha256
from spp_cli.models.checkpoint import is_demo_family
from spp_cli.models.decoder import Decoder
from spp_cli.models.loading import LoadModel, load_config, load_tokenizer, resolve_device
from spp_cli.progress import Reporter
from spp_cli.records import read_record, write_record

__all__ = ["FIGURES", "Measure", "Subject", "evaluation_text"]

FIGURES = ("sparsity", "parameters", "nonzero_parameters")
# What decides the score of a task, of what its result has: see ``comparability``.
_WAYS = ("harness", "num_fewshot", "samples", "chat_template", "data", "definition", "device")


@dataclass(frozen=True)
class Subject:
    """A model to measure: ``load`` returns it, ``folder`` holds its config and tokenizer."""

    name: str
    digest: str  # of the model; "" is none that results could be kept by
    folder: Path
    load: LoadModel


class Measure:
    """Measures models in all that ``config.eval`` asks for.

    The data of the tasks are read when it is made, once for all models; a model is loaded only if
    the cache lacks one of its results, or they are to be measured ``again``.

    Raises:
        SppError: as ``load_tasks``.
    """

    def __init__(
        self, config: SppConfig, cache: Path | None, reporter: Reporter, *, again: bool = False
    ) -> None:
        self._again = again
        self._config = config
        self._settings = config.eval
        self._device = resolve_device(config.model.device).type
        self._cache = cache
        self._reporter = reporter
        names = [name for name in config.eval.tasks if name != "perplexity"]
        self._tasks = load_tasks(names, config.eval) if names else {}

    def __call__(self, subject: Subject) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return results by task, and figures of the model itself."""
        tokenizer = load_tokenizer(
            subject.folder, trust_remote_code=self._config.model.trust_remote_code
        )
        if self._tasks and self._settings.chat_template:
            check_chat_template(tokenizer)

        @cache
        def model() -> PreTrainedModel:
            self._reporter.say(f"eval: {subject.name}")
            return subject.load()

        results: dict[str, Any] = {}
        if "perplexity" in self._settings.tasks:
            tokens = self._text(tokenizer, subject.folder)
            key = {"task": "perplexity", "tokens": tokens.digest, "parts": PARTS}
            found = self._remembered(subject, key, partial(self._perplexity, model, tokens))
            results[f"perplexity@{tokens.tokens.shape[1]}"] = {**found, "device": self._device}
        for name in self._tasks:
            measure = partial(self._scores, model, tokenizer, name)
            found = self._remembered(subject, self._key(name), measure)
            results |= {member: self._with_ways(name, member, found[member]) for member in found}
        if "zeroshot" in self._settings.tasks:
            mean = zeroshot_mean({name: results[name]["metrics"] for name in ZEROSHOT})
            ways = [[results[name][key] for key in _WAYS] for name in ZEROSHOT]
            members = sha256(canonical_json(ways))[:16]
            results["zeroshot"] = {"metrics": mean, "tasks": list(ZEROSHOT), "members": members}
        figures = self._remembered(subject, {"figures": FIGURES}, lambda: _figures(model()))
        model.cache_clear()
        gc.collect()
        return results, figures

    def _key(self, name: str) -> dict[str, Any]:
        """Return all that decides what a model scores in a task, but the model."""
        task, settings = self._tasks[name], self._settings
        return {
            "task": name,
            "harness": harness_version(),
            "definition": task.definition(),
            "data": task.data_digests,
            "limit": settings.limit,
            "chat_template": settings.chat_template,
        }

    def _with_ways(self, name: str, member: str, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result of a task, or of a member of a group, with how it was measured."""
        definition = self._tasks[name].definition_digest(member)[:16]
        return {**found, "definition": definition, "device": self._device}

    def _scores(self, model: LoadModel, tokenizer: Any, name: str) -> dict[str, dict[str, Any]]:
        task, settings = self._tasks[name], self._settings
        found = evaluate_task(model(), tokenizer, task, settings, self._reporter)
        return {name: asdict(result) for name, result in found.items()}

    def _text(self, tokenizer: Any, folder: Path) -> TokenSet:
        demo = is_demo_family(folder)
        if demo and (missing := missing_modules("test")):
            self._reporter.warn(
                f"this Python lacks {', '.join(missing)} of the embedded model's test text; "
                "its numbers do not compare with those of other machines"
            )
        return evaluation_text(self._config, tokenizer, folder, demo, self._reporter)

    def _perplexity(self, model: LoadModel, tokens: TokenSet) -> dict[str, Any]:
        size = self._settings.batch_size
        found = perplexity(model(), tokens.tokens, batch_size=size, reporter=self._reporter)
        return {**asdict(found), "source": tokens.source, "digest": tokens.digest}

    def _remembered(
        self, subject: Subject, key: Mapping[str, Any], measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return what was measured before on the same model under the same key, or measure it."""
        if self._cache is None or not subject.digest:
            return measure()
        whole = {**key, "model": subject.digest, "device": self._device, "by": arithmetic()}
        path = self._cache / f"{sha256(canonical_json(whole))[:32]}.json"
        kept: dict[str, Any] | None = None
        if not self._again:
            kept = read_record(path, self._reporter.warn)
        if kept is None:
            kept = measure()
            write_record(path, kept)
        return kept


def evaluation_text(
    config: SppConfig,
    tokenizer: Any,
    folder: Path,
    demo: bool,
    reporter: Reporter | None = None,
) -> TokenSet:
    """Return the text that perplexity is measured on, for the model in ``folder``."""
    settings = config.eval
    length = resolve_length(
        settings.perplexity.sequence_length,
        load_config(folder, trust_remote_code=config.model.trust_remote_code),
        setting="eval.perplexity.sequence_length",
    )
    return evaluation_tokens(
        settings.perplexity,
        tokenizer,
        length,
        demo=demo,
        data_folder=settings.data_folder,
        reporter=reporter,
    )


def _figures(model: PreTrainedModel) -> dict[str, Any]:
    """Return the sparsity of the linears in the decoder blocks, and the parameters of the whole.

    An adapter's own parameters are not counted: merged, they are gone.
    """
    linears = Decoder(model).all_linears()
    adapted = [item.module for item in linears if isinstance(item.module, AdaptedLinear)]
    weights = [
        item.module.effective_weight() if isinstance(item.module, AdaptedLinear) else item.weight
        for item in linears
    ]
    zeros = sum(int(weight.eq(0).sum()) for weight in weights)
    size = sum(weight.numel() for weight in weights)
    extra = sum(p.numel() for layer in adapted for p in layer.adapter_parameters().values())
    total = sum(parameter.numel() for parameter in model.parameters()) - extra
    return {"sparsity": zeros / size, "parameters": total, "nonzero_parameters": total - zeros}
