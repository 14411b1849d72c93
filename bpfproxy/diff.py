"""(applied rows, wanted rows) → ordered Ops. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from bpfproxy.proxiers.base import Key, Op, Row, Rows

Phase = Callable[[Op], int]
"""`Proxier.phase`: the place of an op in the order of a sync."""


def diff(applied: Rows, wanted: Rows, phase: Phase, *, prune: bool = True) -> list[Op]:
    """What turns all of `applied` into `wanted`, in order. Without `prune` rows that nobody wants stay."""
    goal: dict[Key, Row | None] = dict.fromkeys(applied) if prune else {}
    goal.update(wanted)
    return diff_keys(applied, goal, phase)


def diff_keys(applied: Rows, goal: Mapping[Key, Row | None], phase: Phase) -> list[Op]:
    """What brings the keys of `goal`, and no others, to their row there (None: no row), in order."""
    found = applied.get
    return ordered((Op(key, row) for key, row in goal.items() if found(key) != row), phase)


def ordered(ops: Iterable[Op], phase: Phase) -> list[Op]:
    """`ops` by phase; within a phase in their order."""
    phases: defaultdict[int, list[Op]] = defaultdict(list)
    for op in ops:
        phases[phase(op)].append(op)
    return [op for number in sorted(phases) for op in phases[number]]
