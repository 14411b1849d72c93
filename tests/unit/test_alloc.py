"""Ids and extents: never two holders, never re-used within the grace period."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfproxy.proxiers.ebpf.alloc import ExtentAllocator, IdAllocator, TableFullError

GRACE = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_ids_begin_at_one_and_run_out() -> None:
    ids = IdAllocator("ids", 4, GRACE, Clock())
    assert [ids.allocate() for _ in range(3)] == [1, 2, 3]
    with pytest.raises(TableFullError, match="ids: all 3"):
        ids.allocate()


def test_a_freed_id_waits_for_its_grace_period() -> None:
    clock = Clock()
    ids = IdAllocator("ids", 2, GRACE, clock)
    ids.free(ids.allocate())
    with pytest.raises(TableFullError, match="1 in their grace period"):
        ids.allocate()
    clock.now = GRACE
    assert ids.allocate() == 1


def test_gaps_between_the_ids_found_at_start_are_used_after_the_grace_period() -> None:
    clock = Clock()
    ids = IdAllocator("ids", 6, GRACE, clock, used=[2, 5])
    with pytest.raises(TableFullError):
        ids.allocate()
    clock.now = GRACE
    assert sorted(ids.allocate() for _ in range(3)) == [1, 3, 4]


def test_freed_neighbours_are_joined_when_the_end_is_reached() -> None:
    clock = Clock()
    extents = ExtentAllocator("slots", 64, GRACE, clock)
    bases = [extents.allocate(16) for _ in range(4)]
    for base in bases[:2]:
        extents.free(base, 16)
    with pytest.raises(TableFullError, match="32 in their grace period"):
        extents.allocate(32)
    clock.now = GRACE
    assert extents.allocate(32) == 0


def test_gaps_between_the_extents_found_at_start_are_used_after_the_grace_period() -> None:
    clock = Clock()
    extents = ExtentAllocator("slots", 64, GRACE, clock, used=[(48, 16), (16, 5)])
    clock.now = GRACE
    assert sorted(extents.allocate(8) for _ in range(5)) == [0, 8, 24, 32, 40]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.floats(0, 15)), max_size=80))
def test_extents_never_overlap_nor_return_within_the_grace_period(steps: list[tuple[bool, int, float]]) -> None:
    clock = Clock()
    extents = ExtentAllocator("slots", 256, GRACE, clock)
    held: dict[int, int] = {}
    freed: list[tuple[float, range]] = []
    for allocate, length, pause in steps:
        clock.now += pause
        if allocate:
            try:
                base = extents.allocate(length)
            except TableFullError:
                continue
            mine = range(base, base + length)
            assert mine.stop <= 256
            for other, size in held.items():
                assert mine.stop <= other or other + size <= base
            for when, gone in freed:
                overlaps = mine.start < gone.stop and gone.start < mine.stop
                assert not overlaps or clock.now >= when + GRACE
            held[base] = length
        elif held:
            base, length = held.popitem()
            extents.free(base, length)
            freed.append((clock.now, range(base, base + length)))
