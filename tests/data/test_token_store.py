"""Calibration tokens are drawn once: what is read is what would be drawn, or it is drawn anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from spp_cli.config import CalibrationConfig
from spp_cli.data import token_store
from spp_cli.data.calibration import calibration_tokens
from spp_cli.data.token_store import Asked, Kept, TokenStore
from spp_cli.errors import DataError, WorkspaceError
from spp_cli.progress import Silent

LENGTH = 32


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a long text and short lines."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "long.txt").write_text("for name in sorted(names): print(name)\n" * 100)
    rows = [json.dumps({"text": f"number {n} of forty"}) for n in range(40)]
    (folder / "short.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def here(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of that folder."""
    for file in texts.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(tokenizer: Any, digest: str = "t", length: int = LENGTH, **changes: Any) -> Asked:
    values = {"source": "long.txt", "samples": 4, **changes}
    config = CalibrationConfig.model_validate(values)
    return Asked(config, tokenizer, digest, length, demo=False)


def drawn(request: Asked) -> torch.Tensor:
    found = calibration_tokens(request.config, request.tokenizer, request.length, demo=False)
    return found.tokens


def path_of(kept: Kept) -> Path:
    assert kept.path is not None
    return kept.path


@given(seed=st.integers(0, 2**32 - 1), several=st.booleans(), samples=st.integers(2, 6))
@settings(max_examples=25)
def test_what_is_read_is_what_was_drawn(
    tokenizer: Any,
    texts: Path,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    several: bool,
    samples: int,
) -> None:
    long, short = (str(texts / name) for name in ("long.txt", "short.jsonl"))
    source = {long: 1, short: 1} if several else short
    request = asked(tokenizer, source=source, seed=seed, samples=samples)
    store = TokenStore(tmp_path_factory.mktemp("store"))
    first, second = (store.tokens(request, Silent()) for _ in range(2))
    assert (first.is_new, second.is_new) == (True, False)
    assert first.path == second.path
    assert torch.equal(first.tokens.tokens, drawn(request))
    assert torch.equal(second.tokens.tokens, drawn(request))
    assert second.tokens.described() == first.tokens.described()


def test_the_file_says_what_it_holds_and_is_a_source_itself(here: Path, tokenizer: Any) -> None:
    kept = TokenStore(here / "store").tokens(asked(tokenizer, seed=3), Silent())
    with safe_open(path_of(kept), framework="pt") as file:
        assert list(file.keys()) == ["tokens"]
        assert file.get_tensor("tokens").dtype == torch.int64
        assert file.metadata() == {
            "source": "long.txt",
            "recipe": "documents",
            "samples": "4",
            "length": "32",
            "seed": "3",
            "tokenizer": "t",
            "digest": kept.tokens.digest,
        }
    again = drawn(asked(tokenizer, source=str(kept.path)))
    assert torch.equal(again, kept.tokens.tokens)


def test_two_stores_of_the_same_tokens_have_the_same_file(here: Path, tokenizer: Any) -> None:
    files = [
        path_of(TokenStore(here / name).tokens(asked(tokenizer), Silent())) for name in ("a", "b")
    ]
    assert files[0].name == files[1].name
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"source": "short.jsonl"},
        {"source": {"long.txt": 1, "short.jsonl": 1}},
        {"samples": 5},
        {"seed": 1},
        {"format": "text"},
        {"field": "body"},
        {"length": 48},
        {"digest": "another tokenizer"},
    ],
    ids=str,
)
def test_whatever_decides_the_tokens_is_in_the_name(
    change: dict[str, Any], here: Path, tokenizer: Any
) -> None:
    assert asked(tokenizer, **change).key(None) != asked(tokenizer).key(None)


@pytest.mark.parametrize("same", [{"batch_size": 1}, {"source": {"long.txt": 7}}], ids=str)
def test_whatever_does_not_is_not(same: dict[str, Any], here: Path, tokenizer: Any) -> None:
    assert asked(tokenizer, **same).key(None) == asked(tokenizer).key(None)


def test_the_order_of_sources_and_the_scale_of_their_weights_are_no_difference(
    here: Path, tokenizer: Any
) -> None:
    one = asked(tokenizer, source={"long.txt": 3, "short.jsonl": 1})
    other = asked(tokenizer, source={"short.jsonl": 0.5, "long.txt": 1.5})
    assert one.key(None) == other.key(None)
    assert torch.equal(drawn(one), drawn(other))


@pytest.mark.parametrize(("name", "word"), [("long.txt", "print"), ("short.jsonl", "forty")])
def test_a_changed_text_is_drawn_anew_if_it_is_one_of_several_too(
    name: str, word: str, here: Path, tokenizer: Any
) -> None:
    request = asked(tokenizer, source={"long.txt": 3, "short.jsonl": 1})
    store = TokenStore(here / "store", here / "digests.json")
    before = store.tokens(request, Silent())
    (here / name).write_text((here / name).read_text().replace(word, "yield"))
    after = store.tokens(request, Silent())
    assert after.is_new
    assert after.path != before.path
    assert after.tokens.digest != before.tokens.digest


def test_a_text_that_is_gone_is_a_mistake_though_its_tokens_are_there(
    here: Path, tokenizer: Any
) -> None:
    store = TokenStore(here / "store")
    store.tokens(asked(tokenizer), Silent())
    (here / "long.txt").unlink()
    with pytest.raises(DataError, match=r"long\.txt: no such file or folder"):
        store.tokens(asked(tokenizer), Silent())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap(path: Path) -> None:
    """Put another whole file of tokens there."""
    token_store.write_tensors(
        path, {"tokens": ((4, 16), torch.int64)}, lambda _: torch.zeros(4, 16).long(), {}
    )


@pytest.mark.parametrize("damage", [flip, cut, empty, swap])
def test_a_damaged_file_is_drawn_anew_with_a_word(damage: Any, here: Path, tokenizer: Any) -> None:
    store, talk = TokenStore(here / "store"), Silent()
    kept = store.tokens(asked(tokenizer), talk)
    whole = path_of(kept).read_bytes()
    damage(path_of(kept))
    again = store.tokens(asked(tokenizer), talk)
    assert again.is_new
    assert torch.equal(again.tokens.tokens, kept.tokens.tokens)
    assert path_of(kept).read_bytes() == whole
    (warning,) = talk.warnings
    assert warning.startswith(f"{kept.path} is damaged, and drawn anew: ")
    assert not store.tokens(asked(tokenizer), talk).is_new


def test_what_a_killed_writer_left_goes_with_the_next(here: Path, tokenizer: Any) -> None:
    (here / "store").mkdir()
    (here / "store" / ".a.safetensors.1.writing").write_bytes(b"half")
    assert TokenStore(here / "store").tokens(asked(tokenizer), Silent()).is_new
    assert not list((here / "store").glob(".*"))


def test_a_folder_that_cannot_be_is_a_mistake_of_one_line(here: Path, tokenizer: Any) -> None:
    (here / "store").write_text("a file")
    with pytest.raises(WorkspaceError, match=r"^cannot write .*Something else is in its place"):
        TokenStore(here / "store").tokens(asked(tokenizer), Silent())


def test_without_a_folder_tokens_are_drawn_and_kept_nowhere(here: Path, tokenizer: Any) -> None:
    kept = TokenStore().tokens(asked(tokenizer), Silent())
    assert (kept.path, kept.is_new) == (None, True)
    assert torch.equal(kept.tokens.tokens, drawn(asked(tokenizer)))
    assert sorted(path.name for path in here.iterdir()) == ["long.txt", "short.jsonl"]


def test_a_hub_data_set_is_known_by_its_name_so_that_the_hub_need_not_answer(
    here: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    request = asked(tokenizer, source="owner/name")
    store = TokenStore(here / "store")
    with pytest.raises(DataError, match="data set owner/name"):
        store.tokens(request, Silent())
    # Drawn where the hub could be reached, from what is here a file.
    kept = store.tokens(asked(tokenizer), Silent())
    path_of(kept).rename(here / "store" / f"{request.key(None)[:32]}.safetensors")
    assert torch.equal(store.tokens(request, Silent()).tokens.tokens, kept.tokens.tokens)
