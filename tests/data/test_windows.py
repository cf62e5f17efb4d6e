"""Sequences are drawn exactly as published, and packed where documents are too short for that."""

from __future__ import annotations

import itertools
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from spp_cli.data.windows import windows_of_documents, windows_of_packed

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=8)
seeds = st.integers(0, 2**32)


def numbered(lengths: list[int]) -> list[str]:
    """Return documents of so many tokens, where no two tokens in all of them are equal."""
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    return [f"{start} {length}" for start, length in zip(starts, lengths, strict=True)]


def encode(document: str) -> list[int]:
    start, length = map(int, document.split())
    return list(range(start, start + length))


def published(dataset: list[str], nsamples: int, seed: int, seqlen: int) -> list[list[int]]:
    """``get_c4`` of the released code, but for the tensors and the name of the data set."""
    random.seed(seed)
    trainloader = []
    for _ in range(nsamples):
        while True:
            i = random.randint(0, len(dataset) - 1)
            trainenc = encode(dataset[i])
            if len(trainenc) > seqlen:
                break
        i = random.randint(0, len(trainenc) - seqlen - 1)
        j = i + seqlen
        trainloader.append(trainenc[i:j])
    return trainloader


@given(lengths=sizes, samples=st.integers(1, 9), length=st.integers(1, 39), seed=seeds)
def test_windows_of_documents_are_those_of_the_published_loop(
    lengths: list[int], samples: int, length: int, seed: int
) -> None:
    documents = numbered([*lengths, 40])
    drawn = windows_of_documents(documents, encode, samples=samples, length=length, seed=seed)
    expected = published(documents, samples, seed, length)
    assert drawn.rows == (expected if drawn.tokens >= samples * length else [])
    assert drawn.tokens > length


@given(lengths=sizes, seed=seeds)
def test_the_draw_ends_where_no_document_is_long_enough(lengths: list[int], seed: int) -> None:
    documents = numbered(lengths)
    drawn = windows_of_documents(documents, encode, samples=2, length=max(lengths), seed=seed)
    assert not drawn.rows


def test_no_document_is_tokenized_twice() -> None:
    seen: list[str] = []

    def encode_and_note(document: str) -> list[int]:
        seen.append(document)
        return encode(document)

    documents = numbered([50, 3, 60, 2])
    windows_of_documents(documents, encode_and_note, samples=40, length=20, seed=0)
    assert len(seen) == len(set(seen)) == 4


@given(lengths=sizes, samples=st.integers(1, 9), length=st.integers(1, 30), seed=seeds)
def test_packed_windows_are_pieces_of_the_stream_and_overlap_only_where_they_must(
    lengths: list[int], samples: int, length: int, seed: int
) -> None:
    total = sum(lengths)
    counts: Any = {"samples": samples, "length": length, "seed": seed}
    drawn = windows_of_packed(numbered(lengths), encode, **counts)
    if total - length + 1 < samples:
        assert not drawn.rows
        assert drawn.tokens == total
        return
    assert len(drawn.rows) == samples
    assert all(len(row) == length for row in drawn.rows)
    assert len(set(map(tuple, drawn.rows))) == samples
    tokens = [token for row in drawn.rows for token in row]
    if samples * length <= total:
        assert drawn.recipe == "packed"
        assert len(set(tokens)) == len(tokens)
    else:
        assert drawn.recipe == "packed, overlapping"
    # Inside a document tokens count up by one; everything else is where two documents meet.
    ends = {sum(lengths[: index + 1]) - 1 for index in range(len(lengths))}
    for row in drawn.rows:
        pairs = itertools.pairwise(row)
        assert all(after == before + 1 or before in ends for before, after in pairs)


@given(seed=seeds)
def test_packing_reads_no_more_documents_than_it_needs(seed: int) -> None:
    documents = numbered([10] * 100)
    drawn = windows_of_packed(documents, encode, samples=2, length=16, seed=seed)
    assert drawn.tokens == 70  # the first multiple of ten that is at least twice what is asked for


@given(seed=seeds)
def test_the_same_seed_gives_the_same_windows_whatever_the_global_generator_did(seed: int) -> None:
    documents = numbered([30, 40])
    for draw in (windows_of_documents, windows_of_packed):
        random.seed(1)
        first = draw(documents, encode, samples=3, length=9, seed=seed)
        random.seed(2)
        assert draw(documents, encode, samples=3, length=9, seed=seed) == first
