"""Calibration tokens have the shape asked for, are the same for a seed, and say how they came."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from spp_cli.config import CalibrationConfig
from spp_cli.data.calibration import calibration_tokens
from spp_cli.data.tokens import TokenSet
from spp_cli.errors import DataError

SENTENCE = "for name in sorted(names): print(name)\n"


def calibration(tokenizer: Any, source: str | Path, length: int, **settings: Any) -> TokenSet:
    config = CalibrationConfig(source=str(source), **settings)
    return calibration_tokens(config, tokenizer, length, demo=False)


@pytest.fixture
def short_lines(tmp_path: Path) -> Path:
    """Forty documents of some fifteen tokens each."""
    path = tmp_path / "short.jsonl"
    path.write_text("".join(f'{{"text": "number {n} of forty"}}\n' for n in range(40)))
    return path


@pytest.fixture
def long_text(tmp_path: Path) -> Path:
    path = tmp_path / "long.txt"
    path.write_text(SENTENCE * 200)
    return path


def test_the_embedded_model_is_calibrated_on_single_modules_it_was_trained_on(
    tokenizer: Any,
) -> None:
    config = CalibrationConfig(samples=8)
    found = calibration_tokens(config, tokenizer, 64, demo=True)
    assert found.tokens.shape == (8, 64)
    assert found.tokens.dtype == torch.int64
    assert (found.source, found.recipe) == ("demo", "documents")
    again = calibration_tokens(config, tokenizer, 64, demo=True)
    assert torch.equal(again.tokens, found.tokens)
    assert again.digest == found.digest


def test_another_seed_draws_other_sequences(tokenizer: Any, long_text: Path) -> None:
    one, other = (calibration(tokenizer, long_text, 32, samples=4, seed=seed) for seed in (0, 1))
    assert one.recipe == other.recipe == "documents"
    assert one.digest != other.digest


def test_short_documents_are_packed_with_their_beginnings_and_ends(
    tokenizer: Any, short_lines: Path
) -> None:
    found = calibration(tokenizer, short_lines, 64, samples=2)
    assert (found.tokens.shape, found.recipe) == ((2, 64), "packed")
    ids = found.tokens.flatten().tolist()
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    follower = [after for before, after in itertools.pairwise(ids) if before == end]
    assert follower
    assert set(follower) == {begin}


def test_few_long_documents_are_packed_rather_than_drawn_again_and_again(
    tokenizer: Any, tmp_path: Path
) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_text(SENTENCE * (9 if number == 0 else 4))
    assert calibration(tokenizer, tmp_path, 60, samples=20).recipe == "packed"


def test_too_little_text_is_told_in_tokens_with_what_to_change(
    tokenizer: Any, short_lines: Path
) -> None:
    with pytest.raises(DataError) as caught:
        calibration(tokenizer, short_lines, 2048)
    message = str(caught.value)
    assert f"{short_lines} has " in message
    assert "tokens, and 128 different sequences of 2048 need at least 2175" in message
    assert "Lower prune.calibration.samples or sequence_length, or give more text" in message


def test_a_tokenizer_without_an_end_of_sequence_packs_too(
    bare_tokenizer: Any, short_lines: Path
) -> None:
    assert calibration(bare_tokenizer, short_lines, 64, samples=2).recipe == "packed"


def test_stored_tokens_are_a_source(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    tokens = torch.randint(0, 4096, (6, 32), generator=torch.Generator().manual_seed(0))
    save_file({"tokens": tokens.int()}, path)
    found = calibration(tokenizer, path, 32, samples=4)
    assert torch.equal(found.tokens, tokens[:4])
    assert found.tokens.dtype == torch.int64
    assert (found.source, found.recipe) == (str(path), "stored")


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        ({"ids": torch.ones(2, 32, dtype=torch.int64)}, {}, r"no tensor is named tokens"),
        ({"tokens": torch.ones(2, 32)}, {}, r"tokens is float32 \(2, 32\), must be int64 or int32"),
        ({"tokens": torch.ones(64, dtype=torch.int64)}, {}, r"int64 \(64,\), must be"),
        ({"tokens": torch.ones(2, 16, dtype=torch.int64)}, {}, r"Set .*sequence_length to 16"),
        ({"tokens": torch.full((2, 32), 4096)}, {}, r"from 4096 to 4096, .* has 0 to 4095"),
        (
            {"tokens": torch.ones(2, 32, dtype=torch.int64)},
            {"samples": 3},
            r"2 sequences, and .* 3",
        ),
    ],
    ids=["name", "type", "dimensions", "length", "vocabulary", "number"],
)
def test_stored_tokens_that_do_not_fit_are_refused(
    tokenizer: Any, tmp_path: Path, tensors: Any, settings: dict[str, Any], message: str
) -> None:
    save_file(tensors, tmp_path / "tokens.safetensors")
    with pytest.raises(DataError, match=message):
        calibration(tokenizer, tmp_path / "tokens.safetensors", 32, **{"samples": 2, **settings})


def test_a_broken_token_file_and_a_pickled_one_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "tokens.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(DataError, match="not a readable safetensors file"):
        calibration(tokenizer, tmp_path / "tokens.safetensors", 32)
    for name in ("tokens.pt", "tokens.bin", "tokens.pkl"):
        with pytest.raises(DataError, match="is a pickle, which can run code when it is read"):
            calibration(tokenizer, tmp_path / name, 32)
