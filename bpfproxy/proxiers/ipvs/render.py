"""Plan → rows. Pure: needs neither a kernel nor root."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bpfproxy.model.address import Address, Family, Network, format_address
from bpfproxy.model.device import VIP_DEVICE
from bpfproxy.model.frontend import (
    Frontend,
    FrontendKind,
    FrontendSpec,
    NodePlan,
    OnEmpty,
    Scope,
    ServicePlan,
)
from bpfproxy.model.service import Protocol, Scheduler
from bpfproxy.netfilter.rows import ChainKey, RuleKey
from bpfproxy.proxiers.base import Key, Op, Row
from bpfproxy.proxiers.ipvs import chains, sets
from bpfproxy.proxiers.ipvs.rows import (
    DeviceKey,
    EntryKey,
    NodeAddress,
    RealKey,
    RealRow,
    ServerKey,
    ServerRow,
    SetKey,
    SysctlKey,
)

FAMILIES: Final[tuple[Family, ...]] = (4, 6)
SCHEDULERS: Final = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh")
SYSCTLS: Final = {
    "net/ipv4/vs/conntrack": "1",
    "net/ipv4/vs/expire_nodest_conn": "1",
    "net/ipv4/vs/expire_quiescent_template": "1",
    "net/ipv4/ip_forward": "1",
}
STRICT_ARP: Final = {"net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/all/arp_announce": "2"}

_BY_ANNOTATION: Final = {Scheduler.ROUND_ROBIN: "rr", Scheduler.MAGLEV: "mh"}
"""The kernel has none that chooses at random: the node's default has to do."""

_PHASES: Final = (SysctlKey, SetKey, ChainKey, RuleKey, DeviceKey, NodeAddress, EntryKey, ServerKey, RealKey)
"""The order of a sync; stale rows go in the opposite one. What says that a virtual server is ours, and what is to be
masqueraded, is there before the virtual server is."""


class IpvsRenderer:
    """Renders virtual servers. `default_scheduler` is one of SCHEDULERS, `mark` the bit of packets to masquerade,
    `ports` are the first and last to masquerade with."""

    def __init__(
        self,
        default_scheduler: str = "rr",
        *,
        mark: int = 1 << 14,
        ports: tuple[int, int] = (1024, 61000),
        masquerade_all: bool = False,
        strict_arp: bool = False,
        families: tuple[Family, ...] = FAMILIES,
    ) -> None:
        self._default_scheduler = default_scheduler
        self._mark = mark
        self._ports = ports
        self._masquerade_all = masquerade_all
        self._strict_arp = strict_arp
        self._families = families

    # ---- Services -------------------------------------------------------------------------------------------------

    def render(self, plan: ServicePlan) -> dict[Key, Row]:
        """A virtual server for each frontend with its real servers, and the entries of ipsets that go with it."""
        rows: dict[Key, Row] = {}
        for frontend, spec in plan.frontends.items():
            if frontend.scope is Scope.EXTERNAL and frontend.family in self._families:
                # Where clients in and outside the cluster are served differently, those outside are served as those
                # inside, or not at all (rule 9): then packets of theirs are dropped before they come to IPVS.
                inside = plan.frontends.get(_internal(frontend), spec) if spec.scoped else spec
                rows.update(self._server(frontend, inside))
                rows.update((entry, True) for entry in _entries(frontend, spec, inside))
        if plan.health_check is not None:
            port = plan.health_check.port
            rows.update((EntryKey(family, sets.HEALTH_CHECK, port), True) for family in self._families)
        return rows

    def _server(self, frontend: Frontend, spec: FrontendSpec) -> Iterator[tuple[Key, Row]]:
        key = ServerKey(frontend.address, frontend.port, frontend.protocol)
        scheduler = _BY_ANNOTATION.get(spec.scheduler or Scheduler.RANDOM, self._default_scheduler)
        yield key, ServerRow(scheduler, spec.affinity_timeout)
        for backend in spec.backends:
            yield RealKey(key, backend.address, backend.port), RealRow(1, backend.local)
        if spec.backends and frontend.protocol is not Protocol.TCP:
            # TCP connections run out when the real server goes; flows of the others would be cut off.
            for backend in spec.draining:
                yield RealKey(key, backend.address, backend.port), RealRow(0, backend.local)

    # ---- the node -------------------------------------------------------------------------------------------------

    def render_node(self, plan: NodePlan) -> dict[Key, Row]:
        """Sysctls, ipsets, chains, the dummy device, and the addresses on which NodePorts answer."""
        rows: dict[Key, Row] = {
            SysctlKey(name): value for name, value in (SYSCTLS | (STRICT_ARP if self._strict_arp else {})).items()
        }
        rows[DeviceKey()] = True
        for family in self._families:
            rows.update((SetKey(family, name), spec.type) for name, spec in sets.SETS.items())
            rows.update(
                chains.render(
                    family,
                    plan.cluster_networks,
                    mark=self._mark,
                    ports=self._ports,
                    masquerade_all=self._masquerade_all,
                )
            )
        for address in plan.node_port_addresses:
            rows[NodeAddress(address)] = True
        return rows

    def phase(self, op: Op) -> int:
        """See `Proxier.phase`."""
        place = _PHASES.index(type(op.key))
        return place if op.row is not None else 2 * len(_PHASES) - place

    def describe(self, key: Key, row: Row) -> tuple[str, str, str]:
        """(table, key, row) as text for people."""
        match key, row:
            case ServerKey(), ServerRow():
                affinity = f", persistent {row.affinity_timeout} s" if row.affinity_timeout else ""
                return "virtual servers", str(key), f"{row.scheduler}{affinity}"
            case RealKey(), RealRow():
                return "real servers", str(key), f"masquerade, weight {row.weight}{', local' if row.local else ''}"
            case EntryKey(), True:
                return "set entries", str(key), "-"
            case SetKey(), str():
                return "sets", sets.full_name(key.family, key.set), row
            case NodeAddress(), True:
                return "node addresses", format_address(key.address), "NodePorts"
            case DeviceKey(), True:
                return "devices", VIP_DEVICE, "dummy"
            case SysctlKey(), str():
                return "sysctls", key.name, row
            case ChainKey(), tuple():
                return "chains", str(key), "; ".join(map(str, row))
            case RuleKey(), int():
                return "rules", str(key), str(key.rule)
        raise TypeError(f"no row of the ipvs proxier: {key!r}")


def _internal(frontend: Frontend) -> Frontend:
    return Frontend(frontend.address, frontend.port, frontend.protocol, Scope.INTERNAL)


def _entries(frontend: Frontend, spec: FrontendSpec, inside: FrontendSpec) -> Iterator[EntryKey]:
    """What the rules have to know of a frontend; `inside`: what clients in the cluster get."""

    def entry(name: str, source: tuple[Address, int] | None = None) -> EntryKey:
        return EntryKey(frontend.family, name, frontend.port, frontend.protocol, frontend.address, source)

    def port(name: str) -> EntryKey:
        """Bitmaps have no addresses."""
        if frontend.protocol is Protocol.SCTP:
            return entry(name)
        return EntryKey(frontend.family, name, frontend.port, frontend.protocol)

    match spec.kind:
        case FrontendKind.CLUSTER_IP:
            yield entry(sets.CLUSTER_IP)
        case FrontendKind.EXTERNAL_IP:
            yield entry(sets.EXTERNAL_IP_LOCAL if spec.scoped else sets.EXTERNAL_IP)
        case FrontendKind.LOAD_BALANCER:
            yield entry(sets.LOAD_BALANCER)
            if spec.scoped:
                yield entry(sets.LOAD_BALANCER_LOCAL)
            ranges = _ranges(spec.source_ranges, frontend.family)
            if ranges:
                yield entry(sets.LOAD_BALANCER_FW)
                for source in ranges:
                    yield entry(sets.LOAD_BALANCER_SOURCE_CIDR, source)
                if spec.admits_node:
                    yield entry(sets.LOAD_BALANCER_SOURCE_IP, (frontend.address, 0))
        case FrontendKind.NODE_PORT:
            yield port(sets.node_port(frontend.protocol))
            if spec.scoped:
                yield port(sets.node_port_local(frontend.protocol))
    # A virtual server without real ones refuses: ICMP port unreachable.
    if not inside.backends and inside.on_empty is OnEmpty.DROP:
        yield entry(sets.NO_LOCAL)
    elif not spec.backends and spec.on_empty is OnEmpty.DROP:
        node_port = spec.kind is FrontendKind.NODE_PORT
        yield entry(sets.NO_LOCAL_NODE_PORT if node_port else sets.NO_LOCAL_EXTERNAL)


def _ranges(networks: tuple[Network, ...], family: Family) -> list[tuple[Address, int]]:
    """Those of a family. Those of the other alone restrict nothing, nor does one that holds everything (of which
    ipsets could not say so)."""
    mine = [network for network in networks if network.version == family]
    if any(network.prefixlen == 0 for network in mine):
        return []
    return sorted((Address(network.network_address.packed), network.prefixlen) for network in mine)
