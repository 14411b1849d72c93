"""The iptables proxier: rows in, kube-proxy's rules out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final

from bpfproxy.errors import DatapathError
from bpfproxy.events import emit
from bpfproxy.model.frontend import Frontend, NodePlan, ServicePlan
from bpfproxy.netfilter import command, conntrack
from bpfproxy.netfilter.rows import ChainKey, RuleKey, SharedChainKey
from bpfproxy.netfilter.sysctl import Sysctls
from bpfproxy.netfilter.writer import RuleWriter
from bpfproxy.proxiers.base import Failure, Key, Op, Row, Rows, Tended
from bpfproxy.proxiers.iptables.render import IptablesRenderer
from bpfproxy.proxiers.iptables.rows import FlowsKey, FlowsRow, SysctlKey

log = logging.getLogger(__name__)

_RULES: Final = (ChainKey, SharedChainKey, RuleKey)


class IptablesProxier:
    """Implements `Proxier` over netfilter, in the network namespace of the thread that calls it.

    `took_over` is called once everything that is wanted is in force.
    """

    name = "iptables"

    def __init__(
        self,
        renderer: IptablesRenderer,
        writer: RuleWriter,
        sysctls: Sysctls,
        took_over: Callable[[], None] = lambda: None,
    ) -> None:
        self._renderer = renderer
        self._writer = writer
        self._sysctls = sysctls
        self._took_over = took_over
        self._flows: dict[FlowsKey, FlowsRow] = {}
        self._opened = conntrack.Connections()

    def render(self, plan: ServicePlan) -> Rows:
        """See `Proxier.render`. Only families that the kernel speaks."""
        return self._possible(self._renderer.render(plan))

    def render_node(self, plan: NodePlan) -> Rows:
        """See `Proxier.render_node`."""
        return self._possible(self._renderer.render_node(plan))

    def _possible(self, found: dict[Key, Row]) -> Rows:
        families = self._writer.families
        if len(families) == len(command.FAMILIES):
            return found
        return {key: row for key, row in found.items() if isinstance(key, SysctlKey) or key.family in families}

    def phase(self, op: Op) -> int:
        """See `Proxier.phase`."""
        return self._renderer.phase(op)

    def read(self) -> dict[Key, Row]:
        """See `Proxier.read`. Rows of UDP flows are this process's own: a new one looks at all flows once."""
        rows: dict[Key, Row] = dict(self._writer.read())
        rows.update((SysctlKey(name), value) for name, value in self._sysctls.read().items())
        rows.update(self._flows)
        return rows

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """See `Proxier.apply`."""
        rules = [op for op in ops if isinstance(op.key, _RULES)]
        sysctls = [op for op in ops if isinstance(op.key, SysctlKey)]
        # Parameters are set only while the rules that make them safe are there.
        failures = self._write_sysctls([op for op in sysctls if op.row is None])
        refused = dict(self._writer.apply([(op.key, op.row) for op in rules]))
        failures += [Failure(op, refused[op.key]) for op in rules if op.key in refused]
        failures += self._write_sysctls([op for op in sysctls if op.row is not None])
        return failures + self._end_flows([op for op in ops if isinstance(op.key, FlowsKey)])

    def activate(self, *, complete: bool) -> None:
        """See `Proxier.activate`."""
        if complete:
            self._took_over()
            self._took_over = lambda: None

    def tend(self) -> Tended:
        """See `Proxier.tend`. There is nothing to do: conntrack forgets by itself."""
        return Tended()

    @property
    def precedes_conntrack(self) -> bool:
        """See `Proxier.precedes_conntrack`."""
        return False

    def drained(self, preceded: Collection[Frontend]) -> bool:
        """See `Proxier.drained`. Conntrack goes on translating what it has begun to without any rule, if it sees it."""
        return not self._opened.lead_to(preceded)

    def close(self) -> None:
        """See `Proxier.close`."""

    def _write_sysctls(self, ops: Sequence[Op]) -> list[Failure]:
        failures: list[Failure] = []
        for op in ops:
            try:
                if op.row is None:
                    self._sysctls.restore(op.key.name)
                else:
                    self._sysctls.set(op.key.name, op.row)
            except OSError as error:
                failures.append(Failure(op, f"{op.key.name}: {error.strerror}"))
        return failures

    def _end_flows(self, ops: Sequence[Op]) -> list[Failure]:
        """Rule 16. Flows to a frontend that goes stay: another proxier may serve it now."""
        written = [op for op in ops if op.row is not None]
        try:
            deleted = conntrack.delete_stale({(op.key.address, op.key.port): op.row for op in written})
        except DatapathError as error:
            return [Failure(op, str(error)) for op in written]
        if deleted:
            emit(log, logging.INFO, "udp_flows_removed", rows=deleted)
        for op in ops:
            if op.row is None:
                self._flows.pop(op.key, None)
            else:
                self._flows[op.key] = op.row
        return []
