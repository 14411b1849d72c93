"""The rows of the userspace proxier, and their rendering. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from bpfproxy.model.address import Address, Family, Network, family_of, format_address, parse_address
from bpfproxy.model.frontend import Backend, Frontend, NodePlan, OnEmpty, ServicePlan, ServicePortName
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.base import Key, Op, Row

PROTOCOLS: Final = (Protocol.TCP, Protocol.UDP)
"""Those that are relayed. SCTP is not: its frontends have no rows."""

FAMILIES: Final[tuple[Family, ...]] = (4, 6)
_LOOPBACK: Final[dict[Family, Address]] = {4: parse_address("127.0.0.1"), 6: parse_address("::1")}


class PortalRow(Struct, frozen=True):
    """What is done with connections to a `Frontend`, which is the key."""

    service_port: ServicePortName
    """An affinity is shared by all of its frontends (rule 15)."""
    backends: tuple[Backend, ...]
    draining: tuple[Backend, ...] = ()
    """Backends that keep the UDP sessions that they have (rule 16)."""
    on_empty: OnEmpty = OnEmpty.REJECT
    affinity_timeout: int = 0
    """Seconds; 0 without affinity."""
    source_ranges: tuple[str, ...] = ()
    """Clients must come from one of these; empty: from anywhere. Sorted."""


class NodeAddress(Struct, frozen=True, gc=False):
    """NodePorts answer on this address. Its row is True."""

    address: Address


class Inside(Struct, frozen=True, gc=False):
    """Clients in this network are in the cluster. Its row is True."""

    network: str

    @property
    def family(self) -> Family:
        """4 or 6."""
        return 6 if ":" in self.network else 4


def _ranges(networks: Iterable[Network], family: Family) -> tuple[str, ...]:
    """None if they hold all addresses, and so restrict nothing."""
    merged = _merged(networks, family)
    return () if any(text.endswith("/0") for text in merged) else tuple(sorted(merged))


def _merged(networks: Iterable[Network], family: Family) -> list[str]:
    """Those of a family as few, none of which holds another or could be one with it: so the kernel lists them."""
    mine: list[Any] = [network for network in networks if network.version == family]
    return [str(network) for network in ipaddress.collapse_addresses(mine)]


NODE, PORTAL, STALE_PORTAL, STALE_NODE = range(4)
"""The order of a sync."""


class UserspaceRenderer:
    """Implements `Renderer`."""

    def render(self, plan: ServicePlan) -> dict[Key, Row]:
        """One row per frontend of TCP or UDP."""
        return {
            frontend: PortalRow(
                spec.service_port,
                spec.backends,
                spec.draining if frontend.protocol is Protocol.UDP else (),
                OnEmpty.REJECT if spec.backends else spec.on_empty,
                spec.affinity_timeout,
                _ranges(spec.source_ranges, frontend.family),
            )
            for frontend, spec in plan.frontends.items()
            if frontend.protocol in PROTOCOLS
        }

    def render_node(self, plan: NodePlan) -> dict[Key, Row]:
        """One row per address on which NodePorts answer, and per network of pods."""
        addresses = [*plan.node_port_addresses, *(_LOOPBACK[family] for family in plan.localhost_node_ports)]
        rows: dict[Key, Row] = {NodeAddress(address): True for address in addresses}
        rows.update((Inside(text), True) for family in FAMILIES for text in _merged(plan.cluster_networks, family))
        return rows

    def phase(self, op: Op) -> int:
        """See `Proxier.phase`."""
        if isinstance(op.key, Frontend):
            return PORTAL if op.row is not None else STALE_PORTAL
        return NODE if op.row is not None else STALE_NODE

    def describe(self, key: Key, row: Row) -> tuple[str, str, str]:
        """(table, key, row) as text for people."""
        match key, row:
            case Frontend(), PortalRow():
                backends = ", ".join(map(str, row.backends)) or f"none: {row.on_empty.name.lower()}"
                draining = f"; draining {', '.join(map(str, row.draining))}" if row.draining else ""
                affinity = f"; affinity {row.affinity_timeout} s" if row.affinity_timeout else ""
                ranges = f"; only from {', '.join(row.source_ranges)}" if row.source_ranges else ""
                return f"portals{key.family}", str(key), f"{backends}{draining}{affinity}{ranges}"
            case NodeAddress(), True:
                return f"node_addresses{family_of(key.address)}", format_address(key.address), "NodePorts"
            case Inside(), True:
                return f"inside{key.family}", key.network, "pods of the cluster"
        raise TypeError(f"no row of the userspace proxier: {key!r}")
