"""The seam between the engine and the implementations of the proxy.

A proxier renders the plan into rows, `{key: row}`; the engine diffs wanted rows against applied ones and hands the
proxier an ordered list of `Op`s. Rows are values: hashable keys, rows that compare equal exactly when the kernel
would behave the same, no kernel ids in either.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from bpfproxy.model.frontend import Frontend, NodePlan, ServicePlan

Key = Any
"""Hashable; its type tells the table."""
Row = Any
Rows = Mapping[Key, Row]


class Op(Struct, frozen=True, gc=False):
    """Write `row` under `key`, or delete `key` if `row` is None."""

    key: Key
    row: Row


class Failure(Struct, frozen=True):
    """An `Op` that the kernel or a full table refused. Its key keeps the state it had; the engine tries again."""

    op: Op
    reason: str


class Tended(Struct, frozen=True):
    """What a proxier did for its upkeep."""

    delay: float = math.inf
    """Seconds until it wants to be called again."""
    expired_flows: int = 0
    """Rows of flows that were removed because their time is over."""
    nearly_full: tuple[str, ...] = ()
    """Maps that have become so."""


class Proxier(Protocol):
    """One implementation of the proxy. All methods are called from one thread at a time."""

    @property
    def name(self) -> str:
        """The proxy mode: `ebpf`, `iptables`, ..."""
        ...

    def render(self, plan: ServicePlan) -> Rows:
        """The rows of one Service. Pure; two Services never share a key."""
        ...

    def render_node(self, plan: NodePlan) -> Rows:
        """The rows that belong to the node rather than to a Service. Pure."""
        ...

    def phase(self, op: Op) -> int:
        """The place of `op` in the order of a sync: lower phases are applied first, what is pointed at before what
        points, stale rows last. After any prefix of the ordered ops no frontend leads to a missing or wrong backend."""
        ...

    def read(self) -> dict[Key, Row]:
        """The rows that the kernel holds now, from which a restarted agent goes on."""
        ...

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """Carry out `ops`, which come ordered by `phase`; idempotent. Returns what could not be done; an op that
        depends on a failed one fails with it. The kernel's state stays consistent throughout."""
        ...

    def activate(self, *, complete: bool) -> None:
        """Called after each sync: put what was written into force, where that is a step of its own (attaching
        programs). `complete` says that the source has delivered everything; until then, an earlier datapath that is
        still in force is not replaced by one that may know less."""
        ...

    def tend(self) -> Tended:
        """Do a bounded part of the upkeep that is due: forget flows whose time is over, for one."""
        ...

    @property
    def precedes_conntrack(self) -> bool:
        """Whether it takes packets before conntrack sees them. It leaves alone what may be conntrack's as long as
        the node is `NodePlan.shared`."""
        ...

    def drained(self, preceded: Collection[Frontend]) -> bool:
        """Asked when it serves no Service any more: whether no connection depends on it, so that all it has in the
        kernel can go. `preceded`: frontends that are served by a mode that `precedes_conntrack`."""
        ...

    def close(self) -> None:
        """Release descriptors. The datapath stays in place."""
        ...


class Renderer(Protocol):
    """The pure half of a proxier, which needs no kernel: what `bpfproxy render` shows."""

    def render(self, plan: ServicePlan) -> Rows:
        """See `Proxier.render`."""
        ...

    def render_node(self, plan: NodePlan) -> Rows:
        """See `Proxier.render_node`."""
        ...

    def describe(self, key: Key, row: Row) -> tuple[str, str, str]:
        """(table, key, row) as text for people."""
        ...
