"""The userspace proxier: rows in, listeners and redirects out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from bpfproxy.errors import DatapathError
from bpfproxy.events import emit
from bpfproxy.model.frontend import Frontend, NodePlan, ServicePlan
from bpfproxy.netfilter import conntrack, nft
from bpfproxy.proxiers.base import Failure, Key, Op, Row, Rows, Tended
from bpfproxy.proxiers.userspace import redirect
from bpfproxy.proxiers.userspace.process import Process
from bpfproxy.proxiers.userspace.redirect import Way
from bpfproxy.proxiers.userspace.rows import UserspaceRenderer

log = logging.getLogger(__name__)

_BATCH: Final = 2000
"""Ops in one transaction."""


class UserspaceProxier:
    """Implements `Proxier`. `process` relays; `retire` ends those of other versions when this one serves."""

    name = "userspace"

    def __init__(self, process: Process, retire: Callable[[], None]) -> None:
        self._process = process
        self._retire = retire
        self._renderer = UserspaceRenderer()
        self._ways: dict[Frontend, Way] = {}
        """What the kernel's table holds."""

    def render(self, plan: ServicePlan) -> Rows:
        """See `Proxier.render`."""
        return self._renderer.render(plan)

    def render_node(self, plan: NodePlan) -> Rows:
        """See `Proxier.render_node`."""
        return self._renderer.render_node(plan)

    def phase(self, op: Op) -> int:
        """See `Proxier.phase`."""
        return self._renderer.phase(op)

    def read(self) -> dict[Key, Row]:
        """See `Proxier.read`. A frontend has a row if it has both, its listener and the way to it; it gets a
        different one (None) if it has one of them alone, so that it is written or removed."""
        nft.commit(redirect.base())
        found = redirect.read()
        served = {portal.frontend: portal for portal in self._process.portals()}
        rows: dict[Key, Row] = {}
        if found is not None:
            self._ways = found.ways
            rows.update(dict.fromkeys((*found.node_addresses, *found.inside), True))
        for frontend in self._ways.keys() | served.keys():
            portal = served.get(frontend)
            stands = portal is not None and self._ways.get(frontend) == redirect.way(portal.row, portal.port)
            rows[frontend] = portal.row if portal is not None and stands else None
        return rows

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """See `Proxier.apply`."""
        failures: list[Failure] = []
        for start in range(0, len(ops), _BATCH):
            failures += self._apply(ops[start : start + _BATCH])
        return failures

    def _apply(self, ops: Sequence[Op]) -> list[Failure]:
        """Listeners first, then the ways to them; stale ways go before their listeners."""
        puts = {op.key: op for op in ops if isinstance(op.key, Frontend) and op.row is not None}
        takes = {op.key: op for op in ops if isinstance(op.key, Frontend) and op.row is None}
        opened = self._process.put({frontend: op.row for frontend, op in puts.items()})
        failures = [Failure(puts[portal.frontend], portal.error) for portal in opened if portal.error]
        commands: list[tuple[Op, list[str]]] = [
            (op, [redirect.set_node(op.key, present=op.row is not None)])
            for op in ops
            if not isinstance(op.key, Frontend)
        ]
        wanted = {portal.frontend: redirect.way(portal.row, portal.port) for portal in opened if not portal.error}
        for frontend, to in wanted.items():
            former = self._ways.get(frontend)
            if former != to:
                commands.append((puts[frontend], redirect.put(frontend, to, former)))
        for frontend, op in takes.items():
            if frontend in self._ways:
                commands.append((op, redirect.take(frontend, self._ways[frontend])))
        refused = self._commit(commands)
        failures += refused
        failed = {failure.op.key for failure in refused}
        self._ways.update((frontend, to) for frontend, to in wanted.items() if frontend not in failed)
        gone = [frontend for frontend in takes if frontend not in failed]
        for frontend in gone:
            self._ways.pop(frontend, None)
        self._end_stale_flows([key for op, _ in commands if isinstance(key := op.key, Frontend) and key not in failed])
        self._process.take(gone)
        return failures

    def _end_stale_flows(self, moved: Sequence[Frontend]) -> None:
        """Conntrack would lead UDP flows to listeners that are gone, or past those that are new, as long as clients go
        on sending (rule 16)."""
        suspects = redirect.serving(self._ways, moved)
        try:
            ended = conntrack.delete_stale(suspects)
        except DatapathError as error:
            emit(log, logging.WARNING, "udp_flows_not_removed", frontends=len(suspects), reason=error)
            return
        if ended:
            emit(log, logging.INFO, "udp_flows_removed", rows=ended, frontends=len(suspects))

    def _commit(self, commands: Sequence[tuple[Op, list[str]]]) -> list[Failure]:
        """All in one transaction, or, if that is refused, in halves, until only what is at fault is left."""
        if not commands:
            return []
        try:
            nft.commit([line for _, lines in commands for line in lines])
        except DatapathError as error:
            if len(commands) == 1:
                return [Failure(commands[0][0], str(error))]
            middle = len(commands) // 2
            return [*self._commit(commands[:middle]), *self._commit(commands[middle:])]
        return []

    def activate(self, *, complete: bool) -> None:
        """See `Proxier.activate`. A process of another version serves its last connections and ends."""
        if complete:
            self._retire()

    def tend(self) -> Tended:
        """See `Proxier.tend`. The process tends itself."""
        return Tended()

    @property
    def precedes_conntrack(self) -> bool:
        """See `Proxier.precedes_conntrack`."""
        return False

    def drained(self, preceded: Collection[Frontend]) -> bool:
        """See `Proxier.drained`."""
        return self._process.load().connections == 0 and self._process.others_drained()

    def load(self) -> Any:
        """What the process carries now."""
        return self._process.load()

    def close(self) -> None:
        """See `Proxier.close`. The process goes on."""
        self._process.close()
