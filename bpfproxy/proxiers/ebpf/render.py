"""Plan → rows. Pure: needs neither a kernel nor root."""

from __future__ import annotations

from typing import Final

from bpfproxy.model.address import Address, Network, format_address, parse_address
from bpfproxy.model.device import DevicePlan
from bpfproxy.model.frontend import Frontend, FrontendSpec, NodePlan, OnEmpty, Pool, ServicePlan, ServicePortName
from bpfproxy.model.service import Scheduler
from bpfproxy.proxiers.base import Key, Op, Row
from bpfproxy.proxiers.ebpf.rows import (
    ClusterNetwork,
    DeviceKey,
    FrontendRow,
    NodeAddress,
    NodeAddressRow,
    NodeKey,
    NodeRow,
    Range,
    SetKey,
    SetRow,
)

_LOOPBACK: Final[dict[int, Address]] = {4: parse_address("127.0.0.0"), 6: parse_address("::1")}

SET, FRONTEND, NODE, DEVICE, STALE_DEVICE, STALE_NODE, STALE_FRONTEND, STALE_SET = range(8)
"""The order of a sync: what is pointed at before what points, programs when their tables are filled, stale rows
last."""

_PHASES: Final[dict[type, tuple[int, int]]] = {
    SetKey: (SET, STALE_SET),
    Frontend: (FRONTEND, STALE_FRONTEND),
    NodeAddress: (NODE, STALE_NODE),
    ClusterNetwork: (NODE, STALE_NODE),
    NodeKey: (NODE, STALE_NODE),
    DeviceKey: (DEVICE, STALE_DEVICE),
}


class EbpfRenderer:
    """Renders service tables; `default_scheduler` serves Services without the annotation."""

    def __init__(self, default_scheduler: Scheduler = Scheduler.RANDOM) -> None:
        self._default_scheduler = default_scheduler

    def render(self, plan: ServicePlan) -> dict[Key, Row]:
        """One FrontendRow per frontend, one SetRow per pool and family that a frontend leads to."""
        rows: dict[Key, Row] = {}
        set_keys: dict[tuple[ServicePortName, int, Pool], SetKey] = {}
        for frontend, spec in plan.frontends.items():
            family = frontend.family
            identity = (spec.service_port, family, spec.pool)
            set_key = set_keys.get(identity)
            if set_key is None:
                set_key = set_keys[identity] = SetKey(spec.service_port, family, spec.pool)
                rows[set_key] = self._set_row(spec)
            ranges = _ranges(spec, family) if spec.source_ranges else ()
            rows[frontend] = FrontendRow(
                set_key, spec.kind, spec.masquerade, spec.affinity_timeout, spec.scoped, ranges
            )
        return rows

    def _set_row(self, spec: FrontendSpec) -> SetRow:
        return SetRow(
            spec.backends,
            spec.draining,
            OnEmpty.REJECT if spec.backends else spec.on_empty,
            self._default_scheduler if spec.scheduler is None else spec.scheduler,
        )

    def render_node(self, plan: NodePlan) -> dict[Key, Row]:
        """One row per address on which NodePorts answer, per pod network, per device that takes part, and one for the
        node where any does."""
        addresses = [*plan.node_port_addresses, *(_LOOPBACK[family] for family in plan.localhost_node_ports)]
        rows: dict[Key, Row] = {NodeAddress(address): NodeAddressRow() for address in addresses}
        rows.update((ClusterNetwork(*_range(network)), True) for network in plan.cluster_networks)
        rows.update((DeviceKey(device.index), device) for device in plan.devices)
        if plan.devices:
            rows[NodeKey()] = NodeRow(plan.route_generation, plan.sources, plan.shared)
        return rows

    def phase(self, op: Op) -> int:
        """See `Proxier.phase`."""
        write, stale = _PHASES[type(op.key)]
        return stale if op.row is None else write

    def describe(self, key: Key, row: Row) -> tuple[str, str, str]:
        """(table, key, row) as text for people."""
        match key, row:
            case SetKey(), SetRow():
                members = ", ".join(map(str, row.backends)) or f"none: {row.on_empty.name.lower()}"
                draining = f"; draining {', '.join(map(str, row.draining))}" if row.draining else ""
                return "sets", str(key), f"{row.scheduler.label}: {members}{draining}"
            case Frontend(), FrontendRow():
                affinity = f", affinity {row.affinity_timeout} s" if row.affinity_timeout else ""
                scoped = ", scoped" if row.scoped else ""
                masquerade = row.masquerade.name.lower().replace("_", "-")
                ranges = ", ".join(f"{format_address(address)}/{prefix}" for address, prefix in row.source_ranges)
                only = f", only from {ranges}" if ranges else ""
                text = f"{row.kind.label} → {row.set}, masquerade {masquerade}{affinity}{scoped}{only}"
                return f"frontends{key.family}", str(key), text
            case NodeAddress(), NodeAddressRow():
                return "node_addresses", str(key), "NodePorts" if row.node_ports else "-"
            case ClusterNetwork(), True:
                return "networks", str(key), "pods of the cluster"
            case NodeKey(), NodeRow():
                sources = ", ".join(map(format_address, row.sources)) or "none"
                shared = "; shared with other modes" if row.shared else ""
                return "node", str(key), f"source {sources}; route generation {row.route_generation}{shared}"
            case DeviceKey(), DevicePlan():
                return "devices", row.name, str(row)
        raise TypeError(f"no row of the ebpf proxier: {key!r}")


def _ranges(spec: FrontendSpec, family: int) -> tuple[Range, ...]:
    """The frontend's ranges in its own family; ranges of the other alone restrict nothing, as in kube-proxy."""
    return tuple(sorted(_range(network) for network in spec.source_ranges if network.version == family))


def _range(network: Network) -> Range:
    return Address(network.network_address.packed), network.prefixlen
