"""The embedded model's tokenizer, and one that has a chat template, for the data tests."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer

import spp_cli.demo
from spp_cli.progress import Silent

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what ``datasets`` writes out of the user's cache."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(Path(spp_cli.demo.__file__).parent / "model")


@pytest.fixture(scope="session")
def chat_tokenizer(tokenizer: Any) -> Any:
    chatty = copy.deepcopy(tokenizer)
    chatty.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    chatty.chat_template = CHATML
    return chatty


@pytest.fixture(scope="session")
def bare_tokenizer(tokenizer: Any) -> Any:
    """A tokenizer like those of GPT-2's family: nothing at the beginning, no end of sequence."""
    bare = copy.deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = None
    bare.eos_token = None
    return bare


class Told(Silent):
    """A reporter that keeps the lines it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def told() -> Told:
    return Told()
