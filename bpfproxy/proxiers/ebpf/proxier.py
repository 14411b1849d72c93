"""The ebpf proxier: rows in, service tables and attached programs out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from bpfproxy.events import emit
from bpfproxy.model.frontend import Frontend, NodePlan, ServicePlan
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.base import Failure, Key, Op, Row, Rows, Tended
from bpfproxy.proxiers.ebpf import codec, snapshot
from bpfproxy.proxiers.ebpf.alloc import Clock
from bpfproxy.proxiers.ebpf.collector import LONGEST, Collector
from bpfproxy.proxiers.ebpf.conntrack import Conntrack
from bpfproxy.proxiers.ebpf.devices import DeviceTable
from bpfproxy.proxiers.ebpf.inheritance import Ids
from bpfproxy.proxiers.ebpf.packet import Timeouts
from bpfproxy.proxiers.ebpf.packet_tables import PacketTables
from bpfproxy.proxiers.ebpf.render import EbpfRenderer
from bpfproxy.proxiers.ebpf.rows import ClusterNetwork, DeviceKey, NodeAddress, NodeKey, SetKey
from bpfproxy.proxiers.ebpf.snapshot import Maps
from bpfproxy.proxiers.ebpf.tables import FrontendTable, Gone, SetTable
from bpfproxy.proxiers.ebpf.writing import delete_rows, write_rows

log = logging.getLogger(__name__)

_OF_PACKETS: Final = (DeviceKey, ClusterNetwork, NodeKey)
"""Kinds of rows for which the packet level is needed."""

Activate = Callable[[bool], None]
DestroySockets = Callable[[Mapping[int, Gone]], None]
"""Given {socket cookie: the backend that went} of connected UDP sockets."""


class EbpfProxier:
    """Implements `Proxier` over the maps of a loaded datapath.

    `activate` attaches the socket level's programs when the tables are filled; `destroy_sockets` ends the connected
    UDP sockets of backends that went; `devices` attaches those of the packet level, which `load_packets` equips and
    whose maps it adds to `maps` (it returns why it cannot); `timeouts` are the ones that they are loaded with. `former`
    has the ids that are to be given again.
    """

    name = "ebpf"

    def __init__(
        self,
        maps: Maps,
        renderer: EbpfRenderer,
        *,
        grace_period: float,
        activate: Activate,
        destroy_sockets: DestroySockets,
        close: Callable[[], None],
        devices: DeviceTable | None = None,
        load_packets: Callable[[], str] = str,
        former: Ids | None = None,
        timeouts: Timeouts | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._maps = maps
        self._renderer = renderer
        self._grace = grace_period
        self._activate = activate
        self._destroy_sockets = destroy_sockets
        self._close = close
        self._devices = devices
        self._load_packets = load_packets
        self._former = former or Ids()
        self._timeouts = timeouts or Timeouts()
        self._clock = clock
        self._conntrack = Conntrack(maps, self._timeouts)
        self._collector = Collector(self._conntrack)
        self._found: dict[Key, Row] | None = self._restore()

    def render(self, plan: ServicePlan) -> Rows:
        """See `Proxier.render`."""
        return self._renderer.render(plan)

    def render_node(self, plan: NodePlan) -> Rows:
        """See `Proxier.render_node`."""
        absent: set[type] = set() if self._devices else {DeviceKey}
        if not (self._packets.loaded or (self._lacks_packets and plan.devices)):
            absent |= {ClusterNetwork, NodeKey}
        rows = self._renderer.render_node(plan)
        return {key: row for key, row in rows.items() if type(key) not in absent}

    def phase(self, op: Op) -> int:
        """See `Proxier.phase`."""
        return self._renderer.phase(op)

    def read(self) -> dict[Key, Row]:
        """See `Proxier.read`. Ids and extents that nothing uses, an interrupted sync's among them, become free."""
        rows, self._found = self._found or self._restore(), None
        if self._devices:
            rows.update(self._devices.read())
        return rows

    def _restore(self) -> dict[Key, Row]:
        found = snapshot.take(self._maps)
        delete_rows(self._maps["set_names"], [codec.U32.pack(number) for number in found.unused_names])
        for family in (4, 6):
            dangling = [codec.encode_frontend_key(f) for f in found.dangling if f.family == family]
            delete_rows(self._maps[f"frontends{family}"], dangling)
        rows = found.rows()
        self._packets = PacketTables(self._maps)
        self._packets.reconcile(found.frontends, found.backends)
        self._sets = SetTable(self._maps, self._packets, found, self._former, self._grace, self._clock)
        self._frontends = FrontendTable(
            self._maps, self._packets, found, self._former, self._sets, self._grace, self._clock
        )
        return rows

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """See `Proxier.apply`. Batches the ops of each table; their order among the tables is `phase`'s."""
        if not (self._lacks_packets and any(type(op.key) is DeviceKey and op.row is not None for op in ops)):
            return self._carry_out(ops)
        failures = self._carry_out([op for op in ops if type(op.key) not in _OF_PACKETS])
        self._activate(False)  # sockets need not wait until the packet level is loaded
        late = [op for op in ops if type(op.key) in _OF_PACKETS]
        if reason := self._bring_packets():
            failures += [Failure(op, reason) for op in late if op.row is not None]
            late = [op for op in late if op.row is None]
        return failures + self._carry_out(late)

    def _carry_out(self, ops: Sequence[Op]) -> list[Failure]:
        failures: list[Failure] = []
        for kind, write, delete in (
            (SetKey, self._sets.write, None),
            (Frontend, self._frontends.write, None),
            (NodeAddress, self._write_addresses, None),
            (ClusterNetwork, self._packets.write_networks, None),
            (NodeKey, self._packets.write_node, None),
            (DeviceKey, self._write_devices, self._delete_devices),
            (ClusterNetwork, None, self._packets.delete_networks),
            (NodeAddress, None, self._delete_addresses),
            (Frontend, None, self._frontends.delete),
            (SetKey, None, self._sets.delete),
        ):
            mine = [op for op in ops if type(op.key) is kind]
            if write is not None and (writes := [op for op in mine if op.row is not None]):
                failures += write(writes)
            if delete is not None and (deletes := [op for op in mine if op.row is None]):
                failures += delete(deletes)
        self._release_gone()
        return failures

    def activate(self, *, complete: bool) -> None:
        """See `Proxier.activate`."""
        self._activate(complete)
        if complete:
            self._sets.backends.settle()
            self._frontends.settle()
            self._release_gone()

    def tend(self) -> Tended:
        """See `Proxier.tend`."""
        tended = self._collector.run()
        if self._lacks_packets:
            return replace(tended, delay=LONGEST)
        return tended

    @property
    def precedes_conntrack(self) -> bool:
        """See `Proxier.precedes_conntrack`."""
        return bool(self._conntrack.tables)

    def drained(self, preceded: Collection[Frontend]) -> bool:
        """See `Proxier.drained`. Sockets have their backends' addresses; flows have nothing but their rows here."""
        return self._conntrack.is_empty()

    def close(self) -> None:
        """See `Proxier.close`."""
        self._close()

    @property
    def _lacks_packets(self) -> bool:
        """Whether the packet level is wanted and not there yet."""
        return self._devices is not None and not self._devices.equipped

    def _bring_packets(self) -> str:
        """Load the packet level, beside the tables that are there. Returns why it cannot be."""
        if reason := self._load_packets():
            return reason
        self._conntrack = Conntrack(self._maps, self._timeouts)
        self._collector = Collector(self._conntrack)
        self._packets.reconcile(self._frontends.entries, self._sets.backends.entries)
        for entry in self._frontends.entries.values():
            self._packets.admit(entry.id, entry.row.source_ranges)
        return ""

    def _write_addresses(self, ops: Sequence[Op]) -> list[Failure]:
        keys = [codec.encode_node_address(op.key) for op in ops]
        values = [codec.encode_node_address_row(op.row) for op in ops]
        refused = write_rows(self._maps["node_addresses"], keys, values)
        return [Failure(ops[index], reason) for index, reason in refused.items()]

    def _delete_addresses(self, ops: Sequence[Op]) -> list[Failure]:
        delete_rows(self._maps["node_addresses"], [codec.encode_node_address(op.key) for op in ops])
        return []

    def _write_devices(self, ops: Sequence[Op]) -> list[Failure]:
        self._packets.write_devices(ops)
        return self._devices.write(ops) if self._devices else []

    def _delete_devices(self, ops: Sequence[Op]) -> list[Failure]:
        failures = self._devices.delete(ops) if self._devices else []
        self._packets.delete_devices(ops)
        return failures

    def _release_gone(self) -> None:
        """UDP state of backends that are no longer Serving goes at once; TCP connections run out (rule 16)."""
        gone = self._sets.backends.gone
        udp = {(item.id, item.generation): item for item in gone if item.backend.protocol is Protocol.UDP}
        gone.clear()
        if not udp:
            return
        if flows := self._conntrack.forget(udp):
            emit(log, logging.INFO, "udp_flows_removed", rows=flows, backends=len(udp))
        cookies: dict[int, Gone] = {}
        for key, value in self._maps["udp_sockets"].items():
            item = udp.get(codec.UDP_SOCKET.unpack(value))
            if item is not None:
                cookies[int.from_bytes(key, "little")] = item
        if cookies:
            self._destroy_sockets(cookies)
