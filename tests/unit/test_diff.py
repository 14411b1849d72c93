"""(applied, wanted) → ordered ops."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bpfproxy.diff import diff, diff_keys, ordered
from bpfproxy.proxiers.base import Key, Op, Row

ROWS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2), max_size=6)


def phase(op: Op) -> int:
    """Writes by letter, then deletes the other way round."""
    return ord(op.key) if op.row is not None else 1000 - ord(op.key)


def carry_out(applied: dict[Key, Row], ops: list[Op]) -> dict[Key, Row]:
    result = dict(applied)
    for op in ops:
        if op.row is None:
            del result[op.key]
        else:
            result[op.key] = op.row
    return result


def test_writes_come_before_deletes_each_in_its_phase() -> None:
    applied = {"a": 1, "b": 1, "c": 1, "d": 1}
    wanted = {"c": 2, "b": 1, "e": 1}
    assert diff(applied, wanted, phase) == [Op("c", 2), Op("e", 1), Op("d", None), Op("a", None)]


def test_without_pruning_nothing_is_deleted() -> None:
    assert diff({"a": 1, "b": 1}, {"b": 2}, phase, prune=False) == [Op("b", 2)]


def test_the_incremental_form_leaves_other_keys_alone() -> None:
    applied = {"a": 1, "b": 1, "c": 1}
    assert diff_keys(applied, {"a": None, "b": 1, "d": 1, "e": None}, phase) == [Op("d", 1), Op("a", None)]


def test_order_within_a_phase_is_kept() -> None:
    ops = [Op("b", 1), Op("a", 1), Op("c", 1)]
    assert ordered(ops, lambda op: 0) == ops


@given(ROWS, ROWS)
def test_a_diff_leads_to_what_is_wanted_and_says_nothing_twice(applied: dict[Key, Row], wanted: dict[Key, Row]) -> None:
    ops = diff(applied, wanted, phase)
    assert carry_out(applied, ops) == wanted
    assert [phase(op) for op in ops] == sorted(phase(op) for op in ops)
    assert len({op.key for op in ops}) == len(ops)
    assert all(applied.get(op.key) != op.row for op in ops)
    assert diff(wanted, wanted, phase) == []


@given(ROWS, ROWS, ROWS)
def test_the_incremental_form_is_the_full_one_on_its_keys(
    applied: dict[Key, Row], before: dict[Key, Row], after: dict[Key, Row]
) -> None:
    del applied
    touched = {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    found, full = diff_keys(before, touched, phase), diff(before, after, phase)
    assert sorted(found, key=phase) == sorted(full, key=phase)
