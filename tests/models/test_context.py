"""The context is found by every name that it has."""

from __future__ import annotations

import pytest
from transformers import (
    BloomConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MptConfig,
    PreTrainedConfig,
    WhisperConfig,
    XLNetConfig,
)

from spp_cli.data.tokens import resolve_length
from spp_cli.errors import ConfigError
from spp_cli.models.context import context_of


@pytest.mark.parametrize(
    ("config", "context"),
    [
        (LlamaConfig(max_position_embeddings=64), 64),
        (GPT2Config(n_positions=64), 64),
        (MptConfig(max_seq_len=64), 64),
        (WhisperConfig(max_target_positions=64), 64),
        (Gemma3Config(text_config={"max_position_embeddings": 64}), 64),
        (XLNetConfig(), None),  # which says -1
        (BloomConfig(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_context_is_found_by_its_name(config: PreTrainedConfig, context: int | None) -> None:
    assert context_of(config) == context
    assert resolve_length("auto", config) == (context or 2048)
    assert resolve_length(48, config) == 48
    if context:
        with pytest.raises(ConfigError, match="the model's context is 64 tokens"):
            resolve_length(65, config)
