"""Calibration tokens have the shape asked for, are the same for a seed, and say how they came."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from spp_cli.config import CalibrationConfig
from spp_cli.data.calibration import calibration_tokens, divide, shares
from spp_cli.data.tokens import TokenSet
from spp_cli.errors import DataError

SENTENCE = "for name in sorted(names): print(name)\n"


def calibration(tokenizer: Any, source: Any, length: int, **settings: Any) -> TokenSet:
    source = str(source) if isinstance(source, Path) else source
    config = CalibrationConfig.model_validate({"source": source, **settings})
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


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Three parts of a long text, one of short lines."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "long.txt").write_text(SENTENCE * 200)
    rows = [f'{{"text": "number {n} of forty"}}\n' for n in range(40)]
    (folder / "short.jsonl").write_text("".join(rows))
    return {str(folder / "long.txt"): 3, str(folder / "short.jsonl"): 1}


# As drawn when a source was one text and nothing else; the seeds are 0 and 7.
DRAWN = {
    ("long.txt", 32, 4): ("documents", "d3c83c777873b200", "c6e1f2deabade5f7"),
    ("short.jsonl", 64, 2): ("packed", "b0937b5ca36635ff", "eeed6c5f79a5e2a1"),
    ("short.jsonl", 64, 9): ("packed, overlapping", "1117c534c1c8b6a4", "e0408ee338532b83"),
}


@pytest.mark.parametrize("asked", DRAWN)
def test_a_single_text_gives_the_tokens_that_it_always_gave(
    asked: tuple[str, int, int], tokenizer: Any, long_text: Path, short_lines: Path
) -> None:
    name, length, samples = asked
    recipe, *digests = DRAWN[asked]
    for seed, digest in zip((0, 7), digests, strict=True):
        found = calibration(tokenizer, long_text.parent / name, length, samples=samples, seed=seed)
        assert (found.recipe, found.digest[:16]) == (recipe, digest)


weights = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=2),
    st.one_of(st.integers(1, 9), st.floats(1e-3, 1e3)),
    min_size=1,
    max_size=6,
)


@given(samples=st.integers(1, 500), weights=weights)
def test_samples_are_divided_exactly_and_nobody_is_off_by_a_whole_one(
    samples: int, weights: dict[str, float]
) -> None:
    parts = divide(samples, weights)
    assert sum(parts.values()) == samples
    assert list(parts) == sorted(weights)
    for name, weight in weights.items():
        assert abs(parts[name] - samples * weight / sum(weights.values())) < 1
    assert divide(samples, dict(reversed(weights.items()))) == parts


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ({"c4": 3, "chats": 1}, {"c4": 96, "chats": 32}),
        ({"a": 1, "b": 1, "c": 1}, {"a": 43, "b": 43, "c": 42}),
        ({"b": 0.1, "a": 0.2}, {"a": 85, "b": 43}),
    ],
)
def test_what_is_left_goes_to_the_largest_remainders(
    weights: dict[str, float], parts: dict[str, int]
) -> None:
    assert divide(128, weights) == parts


@given(seed=st.integers(0, 2**32 - 1))
def test_several_sources_give_their_shares_each_as_if_alone_in_an_order_of_the_seed(
    tokenizer: Any, mixed: dict[str, float], seed: int
) -> None:
    found = calibration(tokenizer, mixed, 32, samples=8, seed=seed)
    (long, three), (short, one) = mixed.items()
    assert (three, one) == (3, 1)
    alone = [
        calibration(tokenizer, name, 32, samples=samples, seed=seed).tokens
        for name, samples in ((long, 6), (short, 2))
    ]
    rows = [tuple(row) for part in alone for row in part.tolist()]
    assert sorted(map(tuple, found.tokens.tolist())) == sorted(rows)
    assert found.source == f"6 of {long}, 2 of {short}"
    assert found.recipe == "documents + packed"
    again = calibration(tokenizer, dict(reversed(mixed.items())), 32, samples=8, seed=seed)
    assert torch.equal(again.tokens, found.tokens)


def test_the_order_of_several_sources_is_another_for_another_seed(
    tokenizer: Any, mixed: dict[str, float]
) -> None:
    end = tokenizer.eos_token_id  # only in what was packed

    def places(seed: int) -> list[bool]:
        found = calibration(tokenizer, mixed, 32, samples=16, seed=seed)
        return found.tokens.eq(end).any(dim=1).tolist()

    orders = {tuple(places(seed)) for seed in range(5)}
    assert {sum(order) for order in orders} == {4}
    assert len(orders) > 1


def test_one_source_in_a_mapping_is_that_source(tokenizer: Any, long_text: Path) -> None:
    alone = calibration(tokenizer, long_text, 32, samples=4)
    found = calibration(tokenizer, {str(long_text): 2.5}, 32, samples=4)
    assert (found.digest, found.source) == (alone.digest, alone.source)


def test_auto_among_several_is_what_it_stands_for() -> None:
    config = CalibrationConfig.model_validate(
        {"source": {"auto": 1, "demo": 1, "x": 2}, "samples": 4}
    )
    assert shares(config, demo=True) == {"demo": 2, "x": 2}
    assert shares(config, demo=False) == {"c4": 1, "demo": 1, "x": 2}


def test_a_source_that_would_give_nothing_is_refused(tokenizer: Any) -> None:
    says = r"wikitext2 has the weight 1 of 1001, and gives none of 8 samples\. Raise its weight, or"
    with pytest.raises(DataError, match=says):
        calibration(tokenizer, {"c4": 1000, "wikitext2": 1}, 32, samples=8)


def test_stored_tokens_are_one_of_several_sources(
    tokenizer: Any, long_text: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.safetensors"
    save_file({"tokens": torch.full((3, 32), 7)}, path)
    found = calibration(tokenizer, {str(long_text): 1, str(path): 1}, 32, samples=4)
    assert found.recipe == "documents + stored"
    assert int(found.tokens.eq(7).all(dim=1).sum()) == 2


def test_the_keys_of_a_hub_data_set_are_for_those_of_several_that_are_there_only(
    tokenizer: Any, long_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    keys = {"samples": 4, "split": "train"}
    with pytest.raises(DataError, match=f"subset and split .* source is {long_text}"):
        calibration(tokenizer, {"demo": 1, str(long_text): 1}, 32, **keys)
    with pytest.raises(DataError, match="data set owner/name"):
        calibration(tokenizer, {"owner/name": 1, str(long_text): 1}, 32, **keys)


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
            r"2 sequences, and 3 are wanted of it",
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
