"""Real models for the evaluation: the embedded one, and tiny random ones with its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import spp_cli.demo
from spp_cli.progress import Silent

EMBEDDED = Path(spp_cli.demo.__file__).parent / "model"


class Recorder(Silent):
    """A reporter that remembers its bars: (name, total, amount done)."""

    def __init__(self) -> None:
        super().__init__()
        self.bars: list[tuple[str, float, float]] = []

    @contextmanager
    def task(self, name: str, total: float, unit: str = "") -> Iterator[Any]:
        bar = _Bar()
        yield bar
        self.bars.append((name, total, bar.done))


class _Bar:
    done = 0.0

    def advance(self, amount: float = 1, detail: str = "") -> None:
        self.done += amount


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED)


@pytest.fixture(scope="session")
def embedded_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)


@pytest.fixture(scope="session")
def random_llama() -> Callable[..., LlamaForCausalLM]:
    def build(vocab_size: int = 4096, context: int = 512, seed: int = 0) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=context,
            initializer_range=0.3,
        )
        return LlamaForCausalLM(config).eval()

    return build
