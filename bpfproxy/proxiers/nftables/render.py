"""Plan → rows of Services. Pure: needs neither a kernel nor root."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any, Final

from bpfproxy.model.address import Family, Network, family_of, format_address, format_endpoint
from bpfproxy.model.frontend import (
    Backend,
    Frontend,
    FrontendKind,
    FrontendSpec,
    Masquerade,
    NodePlan,
    OnEmpty,
    Pool,
    Scope,
    ServicePlan,
    ServicePortName,
)
from bpfproxy.model.service import Protocol, Scheduler
from bpfproxy.proxiers.base import Op
from bpfproxy.proxiers.nftables import names, node, phases
from bpfproxy.proxiers.nftables.names import FAMILIES
from bpfproxy.proxiers.nftables.node import Masquerading
from bpfproxy.proxiers.nftables.rows import (
    ChainKey,
    ChainRow,
    ElementKey,
    ElementRow,
    Key,
    OtherKey,
    Row,
    SetKey,
    SetRow,
)

_POLICY_CHAINS: Final = {Pool.CLUSTER: names.SERVICE, Pool.LOCAL: names.LOCAL}
_NUMGEN: Final = {Scheduler.ROUND_ROBIN: "inc"}
"""Other schedulers are random here."""


class NftablesRenderer:
    """Renders the table `kube-proxy` of each family.

    `cluster_networks` tell pods from other clients; ClusterIPs in `service_networks` that no Service has are dropped.
    `masquerade_ports` are the first and the last that may be masqueraded with. Without `node_port_ranges` NodePorts
    answer on the node's primary addresses alone, as kube-proxy does it in this mode.
    """

    def __init__(
        self,
        *,
        cluster_networks: Sequence[Network] = (),
        service_networks: Sequence[Network] = (),
        masquerade_mark: int = 1 << 14,
        masquerade_ports: tuple[int, int] = (1024, 61000),
        node_port_ranges: bool = False,
        default_scheduler: Scheduler = Scheduler.RANDOM,
    ) -> None:
        self._pods = {family: _ranges(cluster_networks, family) for family in FAMILIES}
        self._service_ranges = {family: _ranges(service_networks, family) for family in FAMILIES}
        self._masquerading = Masquerading(masquerade_mark, *masquerade_ports)
        self._node_port_ranges = node_port_ranges
        self._default_scheduler = default_scheduler

    def render(self, plan: ServicePlan) -> dict[Key, Row]:
        """See `Proxier.render`."""
        ports: dict[tuple[ServicePortName, Family], dict[Frontend, FrontendSpec]] = {}
        for frontend, spec in plan.frontends.items():
            ports.setdefault((spec.service_port, frontend.family), {})[frontend] = spec
        rows: dict[Key, Row] = {}
        for (name, family), frontends in ports.items():
            _Port(name, family, frontends, self._pods[family], self._default_scheduler, rows).render()
        return rows

    def render_node(self, plan: NodePlan) -> dict[Key, Row]:
        """See `Proxier.render_node`."""
        rows: dict[Key, Row] = {}
        for family in FAMILIES:
            addresses = self._node_ports(plan, family)
            rows |= node.render(family, addresses, self._service_ranges[family], self._masquerading)
        return rows

    def _node_ports(self, plan: NodePlan, family: Family) -> list[str] | None:
        """Addresses on which NodePorts answer; None: on all that the node has."""
        if self._node_port_ranges and family in plan.node_ports_everywhere:
            return None
        chosen = [address for address in plan.sources if family_of(address) == family]
        if self._node_port_ranges or not chosen:
            chosen = [address for address in plan.node_port_addresses if family_of(address) == family]
        return sorted(map(format_address, chosen))

    def phase(self, op: Op) -> int:
        """See `Proxier.phase`."""
        return phases.phase(op)

    def describe(self, key: Key, row: Row) -> tuple[str, str, str]:
        """(table, key, row) as text for people: chains, sets and elements as in nft's listing."""
        family = FAMILIES[key.family]
        match key, row:
            case ChainKey(), ChainRow():
                hook = row.hook
                head = (f"type {hook.type} hook {hook.hook} priority {hook.priority}",) if hook else ()
                return f"{family} chains", key.name, "; ".join((*head, *row.rules))
            case SetKey(), SetRow():
                verdicts = " : verdict" if row.verdicts else ""
                timeout = f"; timeout {row.timeout}s" if row.timeout else ""
                return f"{family} sets", key.name, f"type {row.type}{verdicts}{timeout}"
            case ElementKey(), ElementRow():
                text = row.verdict or "-"
                comment = key.owner or row.comment
                return f"{family} {key.set}", key.element, f"{text} ({comment})" if comment else text
            case OtherKey(), _:
                return f"{family} {key.kind}", key.name, "foreign"
        raise TypeError(f"no row of the nftables proxier: {key!r}")


class _Port:
    """One ServicePort in one family."""

    def __init__(
        self,
        name: ServicePortName,
        family: Family,
        frontends: dict[Frontend, FrontendSpec],
        pods: Sequence[str],
        default_scheduler: Scheduler,
        rows: dict[Key, Row],
    ) -> None:
        self._name = name
        self._family = family
        self._frontends = frontends
        self._pods = pods
        self._rows = rows
        self._ip = FAMILIES[family]
        self._protocol = name.protocol.name.lower()
        self._base = names.service_base(name)
        spec = next(iter(frontends.values()))
        self._affinity_timeout = spec.affinity_timeout
        scheduler = default_scheduler if spec.scheduler is None else spec.scheduler
        self._numgen = _NUMGEN.get(scheduler, "random")

    def render(self) -> None:
        """Add the rows of the port."""
        masquerade: dict[Pool, list[str]] = {}
        pools: dict[Pool, tuple[Backend, ...]] = {}
        external: tuple[FrontendSpec, FrontendSpec | None] | None = None
        for frontend, spec in self._frontends.items():
            if spec.backends:
                pools[spec.pool] = spec.backends
            if spec.kind is FrontendKind.CLUSTER_IP:
                self._cluster_ip(frontend, spec, masquerade)
            elif frontend.scope is Scope.EXTERNAL:
                inside = self._frontends.get(
                    Frontend(frontend.address, frontend.port, frontend.protocol, Scope.INTERNAL)
                )
                self._external_ip(frontend, spec, inside)
                external = spec, inside
        if external and any(spec is not None and spec.backends for spec in external):
            self._add_chain(names.EXTERNAL, self._external_rules(*external))
        for pool, backends in pools.items():
            rules = [*masquerade.get(pool, ()), *self._choice(backends)]
            self._add_chain(_POLICY_CHAINS[pool], rules)
        self._endpoints(pools.values())

    # ---- frontends -----------------------------------------------------------------------------------------------

    def _cluster_ip(self, frontend: Frontend, spec: FrontendSpec, masquerade: dict[Pool, list[str]]) -> None:
        address = format_address(frontend.address)
        self._rows[ElementKey(self._family, names.CLUSTER_IPS, address, names.owner(self._name.service))] = ElementRow()
        self._dispatch(frontend, spec, _POLICY_CHAINS[spec.pool] if spec.backends else None)
        if not spec.backends or spec.masquerade is Masquerade.NEVER:
            return
        outside = "" if spec.masquerade is Masquerade.ALWAYS else f"{self._ip} saddr != {_set(self._pods)} "
        masquerade.setdefault(spec.pool, []).append(
            f"{self._ip} daddr {address} {self._protocol} dport {frontend.port} {outside}jump {names.MARK_MASQUERADE}"
        )

    def _external_ip(self, frontend: Frontend, spec: FrontendSpec, inside: FrontendSpec | None) -> None:
        usable = spec.backends or (inside is not None and inside.backends)
        self._dispatch(frontend, spec, names.EXTERNAL if usable else None)
        if _ranges(spec.source_ranges, self._family):
            key = ElementKey(self._family, names.FIREWALL_IPS, self._element(frontend))
            self._rows[key] = ElementRow(f"goto {names.FIREWALL}{self._base}")
            self._add_chain(names.FIREWALL, [f"{self._ip} saddr != {_set(self._admitted(spec))} drop"])

    def _dispatch(self, frontend: Frontend, spec: FrontendSpec, chain: str | None) -> None:
        """Lead a frontend to a chain, and turn away what gets no endpoint (rules 10 and 11)."""
        node_port = spec.kind is FrontendKind.NODE_PORT
        element = self._element(frontend)
        if chain is not None:
            where = names.SERVICE_NODE_PORTS if node_port else names.SERVICE_IPS
            self._rows[ElementKey(self._family, where, element)] = ElementRow(f"goto {chain}{self._base}")
        if not spec.backends:
            where = names.NO_ENDPOINT_NODE_PORTS if node_port else names.NO_ENDPOINT_SERVICES
            verdict = f"goto {names.REJECT}" if spec.on_empty is OnEmpty.REJECT else "drop"
            row = ElementRow(verdict, names.comment_of(self._name))
            self._rows[ElementKey(self._family, where, element)] = row

    def _element(self, frontend: Frontend) -> str:
        port = f"{self._protocol} . {frontend.port}"
        return f"{format_address(frontend.address)} . {port}" if any(frontend.address) else port

    # ---- chains --------------------------------------------------------------------------------------------------

    def _external_rules(self, spec: FrontendSpec, inside: FrontendSpec | None) -> list[str]:
        """Rules 8 and 9."""
        rules: list[str] = []
        if spec.masquerade is Masquerade.ALWAYS:
            rules.append(f"jump {names.MARK_MASQUERADE}")
        if inside is not None:
            rules += self._short_cuts(inside)
        if spec.backends:
            rules.append(f"goto {_POLICY_CHAINS[spec.pool]}{self._base}")
        return rules

    def _short_cuts(self, inside: FrontendSpec) -> list[str]:
        """For clients in the cluster, where they do not share the fate of those outside."""
        cluster = f"goto {names.SERVICE}{self._base}" if inside.pool is Pool.CLUSTER and inside.backends else ""
        rules: list[str] = []
        if cluster and self._pods:
            rules.append(f'{self._ip} saddr {_set(self._pods)} {cluster} comment "short-circuit pod traffic"')
        if inside.masquerade is Masquerade.FROM_NODE:
            mark = f"jump {names.MARK_MASQUERADE}"
            rules.append(f'fib saddr type local {mark} comment "masquerade local traffic"')
        if cluster:
            rules.append(f'fib saddr type local {cluster} comment "short-circuit local traffic"')
        return rules

    def _admitted(self, spec: FrontendSpec) -> list[str]:
        """Whom source ranges admit. The node may send from the VIP, where that is one of its own addresses."""
        networks = list(spec.source_ranges)
        if spec.admits_node:
            vips = {one.address for one, its in self._frontends.items() if its.kind is FrontendKind.LOAD_BALANCER}
            networks += (ipaddress.ip_network(address) for address in vips)
        return _ranges(networks, self._family)

    def _choice(self, backends: Sequence[Backend]) -> list[str]:
        bases = [names.endpoint_base(self._name, backend) for backend in backends]
        rules: list[str] = []
        if self._affinity_timeout:
            rules += [f"{self._ip} saddr @{names.AFFINITY}{base} goto {names.ENDPOINT}{base}" for base in bases]
        verdicts = " , ".join(f"{number} : goto {names.ENDPOINT}{base}" for number, base in enumerate(bases))
        rules.append(f"numgen {self._numgen} mod {len(bases)} vmap {{ {verdicts} }}")
        return rules

    def _endpoints(self, pools: Iterable[Sequence[Backend]]) -> None:
        """A chain for each endpoint, and a set for the clients that stick to it."""
        backends = {backend for pool in pools for backend in pool}
        if self._name.protocol is Protocol.UDP:
            # Nothing leads there any more; while the chain stands, flows to the endpoint are not stale (rule 16).
            backends.update(backend for spec in self._frontends.values() for backend in spec.draining)
        for backend in backends:
            base = names.endpoint_base(self._name, backend)
            rules = [f"{self._ip} saddr {format_address(backend.address)} jump {names.MARK_MASQUERADE}"]
            if self._affinity_timeout:
                rules.append(f"update @{names.AFFINITY}{base} {{ {self._ip} saddr }}")
                self._rows[SetKey(self._family, names.AFFINITY + base)] = SetRow(
                    node.ADDRESS_TYPES[self._family], timeout=self._affinity_timeout
                )
            to = format_endpoint(backend.address, backend.port)
            rules.append(f"meta l4proto {self._protocol} dnat to {to}")
            self._rows[ChainKey(self._family, names.ENDPOINT + base)] = ChainRow(tuple(rules))

    def _add_chain(self, prefix: str, rules: Iterable[str]) -> None:
        self._rows[ChainKey(self._family, prefix + self._base)] = ChainRow(tuple(rules))


def _ranges(networks: Iterable[Network], family: Family) -> list[str]:
    """Those of a family in nft's words; none if they hold all addresses, and so restrict nothing."""
    mine: list[Any] = [network for network in networks if network.version == family]
    mine = list(ipaddress.collapse_addresses(mine))
    return [] if any(network.prefixlen == 0 for network in mine) else sorted(map(_range, mine))


def _range(network: Network) -> str:
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _set(texts: Sequence[str]) -> str:
    """An anonymous set; the kernel's listing has no braces around a single one."""
    return texts[0] if len(texts) == 1 else f"{{ {', '.join(texts)} }}"
