"""Text becomes token ids as its tokenizer has it, and the test text chunks of one shape."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, LlamaConfig, OPTConfig

from spp_cli.config import PerplexityConfig
from spp_cli.data.tokens import (
    TokenSet,
    close,
    encode,
    encode_all,
    encode_document,
    encode_documents,
    encode_with_offsets,
    evaluation_tokens,
    resolve_length,
    token_digest,
)
from spp_cli.errors import ConfigError, DataError

SENTENCE = "for name in sorted(names): print(name)\n"


def evaluation(tokenizer: Any, source: str | Path, length: int, **settings: Any) -> TokenSet:
    config = PerplexityConfig(source=str(source), **settings)
    return evaluation_tokens(config, tokenizer, length, demo=False, data_folder=None)


@pytest.fixture
def long_text(tmp_path: Path) -> Path:
    path = tmp_path / "long.txt"
    path.write_text(SENTENCE * 200)
    return path


def test_the_test_text_is_tokenized_at_once_and_cut_in_order(
    tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(SENTENCE * 9)
    (tmp_path / "b.txt").write_text(SENTENCE * 7)
    ids = encode(tokenizer, SENTENCE * 9 + "\n\n" + SENTENCE * 7)
    found = evaluation(tokenizer, tmp_path, 50)
    assert found.recipe == "chunks"
    assert found.tokens.shape == (len(ids) // 50, 50)
    assert found.tokens.flatten().tolist() == ids[: found.tokens.numel()]
    assert ids[0] == tokenizer.bos_token_id
    some = evaluation(tokenizer, tmp_path, 50, max_chunks=2)
    assert torch.equal(some.tokens, found.tokens[:2])


def test_stored_tokens_are_a_test_text(tokenizer: Any, tmp_path: Path) -> None:
    tokens = torch.randint(0, 4096, (6, 32), generator=torch.Generator().manual_seed(0))
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    assert torch.equal(evaluation(tokenizer, tmp_path / "tokens.safetensors", 32).tokens, tokens)


def test_a_test_text_shorter_than_a_chunk_is_refused(tokenizer: Any, long_text: Path) -> None:
    with pytest.raises(DataError, match=r"tokens, less than one chunk of 9999\. Lower eval\.perp"):
        evaluation(tokenizer, long_text, 9999)


def test_a_text_longer_than_the_context_gives_no_warning(
    tokenizer: Any, long_text: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert evaluation(tokenizer, long_text, 512).tokens.numel() > tokenizer.model_max_length
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


@given(texts=st.lists(st.text(), max_size=5))
def test_documents_encode_together_as_they_do_alone(tokenizer: Any, texts: list[str]) -> None:
    assert list(encode_documents(tokenizer, texts)) == [
        encode_document(tokenizer, text) for text in texts
    ]


@given(text=st.text())
def test_a_document_is_closed_once(tokenizer: Any, text: str) -> None:
    ids = encode_document(tokenizer, text)
    assert ids[-1] == tokenizer.eos_token_id
    assert encode_document(tokenizer, text + tokenizer.eos_token) == ids


@given(rows=st.lists(st.lists(st.integers(0, 2**40), min_size=1), min_size=1))
def test_the_digest_changes_with_every_id_and_with_the_shape(rows: list[list[int]]) -> None:
    digest = token_digest(rows)
    assert digest == token_digest([list(row) for row in rows])
    assert token_digest([[rows[0][0] + 1, *rows[0][1:]], *rows[1:]]) != digest
    if len(rows) > 1:
        assert token_digest([rows[0] + rows[1], *rows[2:]]) != digest


def test_auto_is_2048_tokens_or_the_context_if_that_is_shorter() -> None:
    assert resolve_length("auto", LlamaConfig(max_position_embeddings=131072)) == 2048
    assert resolve_length("auto", LlamaConfig(max_position_embeddings=512)) == 512
    assert resolve_length("auto", GPT2Config(n_positions=1024)) == 1024
    assert resolve_length("auto", OPTConfig(max_position_embeddings=64), default=32) == 32
    assert resolve_length("auto", object()) == 2048


def test_a_configured_length_is_kept_unless_it_exceeds_the_context() -> None:
    assert resolve_length(100, LlamaConfig(max_position_embeddings=512)) == 100
    with pytest.raises(ConfigError, match=r"is 4096, and the model's context is 512 tokens\. Set"):
        resolve_length(4096, LlamaConfig(max_position_embeddings=512))


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20), many=st.integers(0, 2))
def test_a_text_that_begins_as_the_tokenizer_begins_does_not_begin_twice(
    tokenizer: Any, bare_tokenizer: Any, text: str, many: int
) -> None:
    said = tokenizer.bos_token * many + text
    plain = tokenizer(said, add_special_tokens=False)["input_ids"]
    begun = plain if many else [tokenizer.bos_token_id, *plain]
    assert encode(tokenizer, said) == encode_all(tokenizer, [said])[0] == begun
    assert next(encode_documents(tokenizer, [said])) == close(tokenizer, begun)
    assert encode_with_offsets(tokenizer, [said])[0][0] == begun
    # Who puts nothing there has nothing to leave out.
    assert encode(bare_tokenizer, said) == bare_tokenizer(said)["input_ids"]


def test_a_text_that_ends_as_the_tokenizer_ends_does_not_end_twice(tokenizer: Any) -> None:
    closing = copy.deepcopy(tokenizer)
    both = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    closing.backend_tokenizer.post_processor = TemplateProcessing("<s> $A </s>", None, both)
    for text in ("hi", "hi</s>", "hi</s></s>", "<s>hi", "<s>hi</s>", "</s>", ""):
        ids = encode(closing, text)
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids.count(tokenizer.eos_token_id) == max(1, text.count("</s>"))
        assert encode_document(closing, text) == ids
