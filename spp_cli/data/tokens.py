"""Texts to token ids, and token tensors of one shape."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spp_cli.config import PerplexityConfig
from spp_cli.data.text import find, load_texts
from spp_cli.errors import ConfigError, DataError, ModelError
from spp_cli.models.context import context_of
from spp_cli.progress import Reporter

__all__ = [
    "TokenSet",
    "check_vocabulary",
    "close",
    "encode",
    "encode_all",
    "encode_document",
    "encode_documents",
    "encode_with_offsets",
    "evaluation_tokens",
    "resolve_length",
    "stored_tokens",
    "token_digest",
    "token_set",
]

_AT_ONCE = 32  # documents, whose tokens are held with all their offsets meanwhile
_PICKLED = (".pt", ".pth", ".bin", ".pkl", ".pickle")


@dataclass(frozen=True)
class TokenSet:
    """Token ids (samples, length) in int64, where they come from, and how they were cut.

    ``recipe`` is "documents" (windows inside single documents, the published way), "packed" (of
    documents end to end), "packed, overlapping", "chunks" (the whole text in order) or "stored".
    ``digest`` is a SHA-256 in hex over the ids and the shape.
    """

    tokens: Tensor
    source: str
    digest: str
    recipe: str

    def described(self) -> dict[str, Any]:
        """Return what there is to say of the tokens, without them."""
        samples, length = self.tokens.shape
        return {
            "source": self.source,
            "recipe": self.recipe,
            "samples": samples,
            "length": length,
            "digest": self.digest,
        }


def evaluation_tokens(
    config: PerplexityConfig,
    tokenizer: Any,
    length: int,
    *,
    demo: bool,
    data_folder: str | None,
    reporter: Reporter | None = None,
) -> TokenSet:
    """Return the test text in consecutive chunks (chunks, length); what is left over is dropped.

    Documents are joined by a blank line and tokenized at once, as published for WikiText-2. The
    reporter is told what was passed over.

    Raises:
        DataError: the text cannot be had, or is shorter than one chunk.
    """
    section = "eval.perplexity"
    stored = stored_tokens(config.source, section, length, tokenizer)
    if stored is not None:
        return token_set(stored[: config.max_chunks], config.source, "stored")
    texts = load_texts(config, "test", demo=demo, data_folder=data_folder, reporter=reporter)
    ids = encode(tokenizer, "\n\n".join(texts.documents))
    chunks = len(ids) // length
    if not chunks:
        raise DataError(
            f"{section}.source: {texts.name} has {len(ids)} tokens, less than one chunk of "
            f"{length}. Lower {section}.sequence_length, or give more text"
        )
    tokens = torch.tensor(ids[: chunks * length]).view(chunks, length)
    return token_set(tokens[: config.max_chunks], texts.name, "chunks")


def resolve_length(
    configured: int | Literal["auto"],
    model_config: Any,
    default: int = 2048,
    *,
    setting: str = "sequence_length",
) -> int:
    """Return the tokens a sequence: as configured, or ``default`` where the context is that long.

    Never the context itself by default, which is 131072 on newer models. ``setting`` is the key
    that ``configured`` was read from, for the message.

    Raises:
        ConfigError: the configured length does not fit into the model's context.
    """
    context = context_of(model_config)
    if configured == "auto":
        return min(default, context or default)
    if context and configured > context:
        raise ConfigError(
            f"{setting} is {configured}, and the model's context is {context} tokens. "
            f"Set at most {context}, or auto"
        )
    return configured


def check_vocabulary(largest: int, model_config: Any) -> None:
    """Refuse a token id that the model has no embedding for.

    Raises:
        ModelError: ``largest`` is such a one.
    """
    vocabulary = _text_config(model_config).vocab_size
    if largest >= vocabulary:
        raise ModelError(
            f"token id {largest} is outside the model's vocabulary of {vocabulary}. "
            "Use the tokenizer that belongs to the model"
        )


def _text_config(model_config: Any) -> Any:
    has_parts = hasattr(model_config, "get_text_config")  # a model that also sees or hears
    return model_config.get_text_config() if has_parts else model_config


def encode(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """Return the tokens of ``text``, with the tokenizer's own special tokens around it or not."""
    return encode_all(tokenizer, [text], special=special)[0]


def encode_document(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a whole document: as ``encode``, and the end of sequence closes it."""
    return close(tokenizer, encode(tokenizer, text))


def encode_documents(tokenizer: Any, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yield ``encode_document`` of each text, using all cores where the tokenizer can."""
    remaining = iter(texts)
    while batch := list(islice(remaining, _AT_ONCE)):
        for ids in encode_all(tokenizer, batch):
            yield close(tokenizer, ids)


def encode_all(tokenizer: Any, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
    """Return the tokens of each text, using all cores where the tokenizer can.

    A special token that the tokenizer puts around a text is not put where the text has it already:
    what begins with "<s>" does not begin with two.
    """
    # Not verbose: a long text is cut afterwards, so a warning that it exceeds the context misleads.
    found = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    once = _once(tokenizer, special)
    return [list(ids[once(ids)]) for ids in found]


def encode_with_offsets(
    tokenizer: Any, texts: Sequence[str], *, special: bool = True
) -> list[tuple[list[int], list[tuple[int, int]] | None]]:
    """Return as ``encode_all`` does, and of each token the characters (start, end) it stands for.

    None for the characters if the tokenizer cannot tell, as those written in Python cannot.
    """
    if not tokenizer.is_fast:
        return [(ids, None) for ids in encode_all(tokenizer, texts, special=special)]
    found = tokenizer(
        list(texts), add_special_tokens=special, return_offsets_mapping=True, verbose=False
    )
    once = _once(tokenizer, special)
    pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return [(list(ids[once(ids)]), offsets[once(ids)]) for ids, offsets in pairs]


def _once(tokenizer: Any, special: bool) -> Callable[[list[int]], slice]:
    """Return what tells which part of a text's tokens has no special token twice at its ends."""
    before, after = _added(tokenizer) if special else ([], [])

    def kept(ids: list[int]) -> slice:
        first = len(before) if before and ids[: 2 * len(before)] == 2 * before else 0
        rest = ids[first:]
        last = len(after) if after and rest[-2 * len(after) :] == 2 * after else 0
        return slice(first, len(ids) - last)

    return kept


def _added(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that the tokenizer puts before a text, and those that it puts after it."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for first in range(len(whole) - len(plain) + 1):
        if whole[first : first + len(plain)] == plain:
            return whole[:first], whole[first + len(plain) :]
    return [], []


def close(tokenizer: Any, ids: list[int]) -> list[int]:
    """Return ``ids`` with the end of sequence after them, unless it is there or there is none."""
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def token_digest(rows: Iterable[Sequence[int] | np.ndarray]) -> str:
    """Return the SHA-256, in hex, over all ids and the length of each row; the same everywhere."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "little"))
        digest.update(np.asarray(row, dtype="<i8").tobytes())
    return digest.hexdigest()


def token_set(tokens: Tensor, source: str, recipe: str) -> TokenSet:
    """Return ``tokens`` (samples, length) with their digest."""
    return TokenSet(tokens, source, token_digest(tokens.numpy()), recipe)


def stored_tokens(source: str, section: str, length: int, tokenizer: Any) -> Tensor | None:
    """Return ``tokens`` (samples, length) of a safetensors file, or None if it is not one.

    Raises:
        DataError: they do not fit the tokenizer or the length, or the file is a pickle or damaged.
    """
    suffix = Path(source).suffix.lower()
    if suffix in _PICKLED:
        raise DataError(
            f"{section}.source: {source} is a pickle, which can run code when it is read. Save it "
            'with safetensors.torch.save_file({"tokens": tokens}, "tokens.safetensors")'
        )
    path = find(source, f"{section}.source") if suffix == ".safetensors" else None
    if path is None:
        return None
    tokens = _read_tokens(path)
    if tokens.ndim != 2 or tokens.dtype not in (torch.int32, torch.int64) or not tokens.numel():
        found = f"{tokens.dtype} {tuple(tokens.shape)}".removeprefix("torch.")
        raise DataError(f"{path}: tokens is {found}, must be int64 or int32 (samples, length)")
    if tokens.shape[1] != length:
        raise DataError(
            f"{path}: sequences of {tokens.shape[1]} tokens, and {length} are asked for. "
            f"Set {section}.sequence_length to {tokens.shape[1]}"
        )
    if tokens.min() < 0 or tokens.max() >= len(tokenizer):
        raise DataError(
            f"{path}: token ids from {int(tokens.min())} to {int(tokens.max())}, and the tokenizer "
            f"has 0 to {len(tokenizer) - 1}. Store the tokens of this model's tokenizer"
        )
    return tokens.long()


def _read_tokens(path: Path) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if "tokens" not in names:
                found = f"but {', '.join(names[:3])}" if names else "nor is there any"
                raise DataError(
                    f"{path}: no tensor is named tokens, {found}. "
                    "Store one of shape (samples, length) under that name"
                )
            return file.get_tensor("tokens")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file: {error}") from error
