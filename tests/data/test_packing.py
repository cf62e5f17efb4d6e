"""Rows are put together without loss, and close together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spp_cli.data.packing import PackedRows, best_fit
from spp_cli.data.prompts import IGNORED
from spp_cli.data.token_rows import Account, RowWriter

sizes_and_room = st.integers(1, 60).flatmap(
    lambda room: st.tuples(st.lists(st.integers(1, room), max_size=60), st.just(room))
)


@given(sizes_and_room)
def test_every_row_goes_into_one_sequence_that_has_room_for_it(given: tuple) -> None:
    sizes, room = given
    groups = best_fit(sizes, room)
    assert sorted(number for group in groups for number in group) == list(range(len(sizes)))
    assert all(0 < sum(sizes[number] for number in group) <= room for group in groups)
    # No two sequences could have been one: at most twice as many as there must be.
    fills = sorted(sum(sizes[number] for number in group) for group in groups)
    assert sum(fills[:2]) > room or len(fills) < 2


@given(st.integers(1, 50), st.integers(10, 40))
def test_rows_that_fill_sequences_exactly_leave_no_room(count: int, room: int) -> None:
    assert len(best_fit([room - 9, 9] * count, room)) == count


@given(st.lists(st.lists(st.integers(0, 99), min_size=2, max_size=9), min_size=1, max_size=12))
def test_positions_begin_anew_with_each_row_and_its_first_token_is_not_learnt(
    rows: list[list[int]],
) -> None:
    writer = RowWriter()
    for ids in rows:
        writer.add(ids, ids)
    packed = PackedRows(writer.rows(Account("r", "alpaca", len(rows))), 16)
    found = []
    for index in range(len(packed)):
        sequence = packed[index]
        assert len({*map(len, sequence.values())}) == 1
        starts = [n for n, position in enumerate(sequence["position_ids"]) if position == 0]
        for begin, end in zip(starts, [*starts[1:], len(sequence["input_ids"])], strict=True):
            ids = sequence["input_ids"][begin:end]
            assert sequence["position_ids"][begin:end] == list(range(len(ids)))
            assert sequence["labels"][begin:end] == [IGNORED, *ids[1:]]
            found.append(ids)
    assert sorted(found) == sorted(rows)
    assert packed.fill == sum(map(len, rows)) / (16 * len(packed))
