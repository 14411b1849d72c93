"""The ipvs proxier: rows in; virtual servers, ipsets and the rules around them out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from pyroute2.netlink.exceptions import NetlinkError

from bpfproxy.errors import DatapathError
from bpfproxy.model.address import Address
from bpfproxy.model.frontend import Frontend, NodePlan, ServicePlan
from bpfproxy.model.service import Protocol
from bpfproxy.netfilter import conntrack
from bpfproxy.netfilter.ipset import IpSets
from bpfproxy.netfilter.rows import ChainKey, RuleKey
from bpfproxy.netfilter.sysctl import Sysctls
from bpfproxy.netfilter.writer import RuleWriter
from bpfproxy.proxiers.base import Failure, Key, Op, Row, Rows, Tended
from bpfproxy.proxiers.ipvs import sets
from bpfproxy.proxiers.ipvs.addresses import VipDevice
from bpfproxy.proxiers.ipvs.entries import EntryTable, vip_entry
from bpfproxy.proxiers.ipvs.render import FAMILIES, IpvsRenderer
from bpfproxy.proxiers.ipvs.rows import DeviceKey, EntryKey, NodeAddress, RealKey, ServerKey, SetKey, SysctlKey
from bpfproxy.proxiers.ipvs.table import ServerTable

_LOOK: Final = 60.0
"""Seconds between two looks at real servers that went."""
_ERRORS: Final = (OSError, NetlinkError, DatapathError)


class IpvsProxier:
    """Implements `Proxier` over IPVS in the network namespace of the thread that calls it."""

    name = "ipvs"

    def __init__(
        self,
        renderer: IpvsRenderer,
        table: ServerTable,
        entries: EntryTable,
        device: VipDevice,
        ipsets: IpSets,
        rules: RuleWriter,
        sysctls: Sysctls,
        close: Callable[[], None],
    ) -> None:
        self._renderer = renderer
        self._table = table
        self._entries = entries
        self._device = device
        self._ipsets = ipsets
        self._rules = rules
        self._sysctls = sysctls
        self._close = close

    def render(self, plan: ServicePlan) -> Rows:
        """See `Proxier.render`."""
        return self._renderer.render(plan)

    def render_node(self, plan: NodePlan) -> Rows:
        """See `Proxier.render_node`."""
        return self._renderer.render_node(plan)

    def phase(self, op: Op) -> int:
        """See `Proxier.phase`."""
        return self._renderer.phase(op)

    # ---- reading --------------------------------------------------------------------------------------------------

    def read(self) -> dict[Key, Row]:
        """See `Proxier.read`. What is there for nobody is a row as well, which nobody wants."""
        rows: dict[Key, Row] = {SysctlKey(name): value for name, value in self._sysctls.read().items()}
        rows.update(self._rules.read())
        if self._device.exists():
            rows[DeviceKey()] = True
        everything = self._ipsets.all()
        contents = {
            (family, name): everything[full_name]
            for family in FAMILIES
            for name in sets.SETS
            if (full_name := sets.full_name(family, name)) in everything
        }
        rows.update((SetKey(family, name), content.type) for (family, name), content in contents.items())
        node_ips = (contents[family, sets.NODE_IPS] for family in FAMILIES if (family, sets.NODE_IPS) in contents)
        self._table.nodes = {entry.address for content in node_ips for entry in content.entries}
        rows.update((NodeAddress(address), True) for address in self._table.nodes)
        entries = dict(self._entries.read(contents, self._table.nodes))
        rows.update(self._table.read())
        rows.update((vip_entry(address), True) for address in self._table.unused_vips())
        in_common = self._table.in_use
        return rows | {key: all_ for key, all_ in entries.items() if key.set != sets.NODE_IPS and not in_common(key)}

    # ---- writing --------------------------------------------------------------------------------------------------

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """See `Proxier.apply`."""
        failures: list[Failure] = []
        self._table.look_at_addresses()
        for is_rule, group in groupby(ops, lambda op: isinstance(op.key, ChainKey | RuleKey)):
            if is_rule:
                failures += self._write_rules(list(group))
                continue
            for op in group:
                try:
                    self._write(op.key, op.row)
                except _ERRORS as error:
                    failures.append(Failure(op, str(error)))
        self._end_udp_flows(op.key.server for op in ops if isinstance(op.key, RealKey) and op.row is None)
        return failures

    def _write_rules(self, ops: Sequence[Op]) -> Iterator[Failure]:
        by_key = {op.key: op for op in ops}
        for key, reason in self._rules.apply([(op.key, op.row) for op in ops]):
            yield Failure(by_key[key], reason)

    def _write(self, key: Key, row: Row) -> None:
        match key:
            case RealKey():
                self._table.delete_real(key) if row is None else self._table.write_real(key, row)
            case ServerKey():
                self._table.delete_server(key) if row is None else self._table.write_server(key, row)
            case EntryKey():
                self._write_entry(key, row)
            case NodeAddress(address=address):
                self._table.remove_node(address) if row is None else self._table.add_node(address)
            case SetKey(family=family, set=name):
                full_name = sets.full_name(family, name)
                self._ipsets.destroy(full_name) if row is None else self._ipsets.create(full_name, row, family)
            case DeviceKey():
                self._device.remove() if row is None else self._device.make()
            case SysctlKey(name=name):
                self._sysctls.restore(name) if row is None else self._sysctls.set(name, row)
            case _:
                raise TypeError(f"no row of the ipvs proxier: {key!r}")

    def _write_entry(self, key: EntryKey, row: Row) -> None:
        if row is not None:
            self._table.claim(key)
            self._entries.write(key, self._table.nodes)
        elif not self._table.in_use(key):
            if key.set == sets.IPVS_IPS:
                self._table.unbind(key.address)
            self._entries.delete(key)

    def _end_udp_flows(self, servers: Iterator[ServerKey]) -> None:
        """IPVS itself would lose the first datagram to a real server that went."""
        serving: Mapping[tuple[Address, int], frozenset[Any]] = {
            (key.address, key.port): self._table.places(key) for key in servers if key.protocol is Protocol.UDP
        }
        if serving:
            conntrack.delete_stale(serving)

    # ---- upkeep ---------------------------------------------------------------------------------------------------

    def activate(self, *, complete: bool) -> None:
        """Nothing: what is written is in force."""

    def tend(self) -> Tended:
        """Remove real servers that went and have no connections any more."""
        self._table.forget_idle()
        return Tended(_LOOK)

    @property
    def precedes_conntrack(self) -> bool:
        """See `Proxier.precedes_conntrack`."""
        return False

    def drained(self, preceded: Collection[Frontend]) -> bool:
        """See `Proxier.drained`."""
        return not self._table.connections()

    def close(self) -> None:
        """Release sockets."""
        self._close()
