"""Plan → kube-proxy's rules (rules 19 to 24). Pure: needs neither a kernel nor root.

nat KUBE-SERVICES ─┬─► KUBE-SVC- or KUBE-SVL-          ClusterIPs
                   ├─► KUBE-EXT-                        external IPs
                   ├─► KUBE-FW- ─► KUBE-EXT-            LoadBalancer IPs; KUBE-FW- where there are source ranges
                   └─► KUBE-NODEPORTS ─► KUBE-EXT-      the last rule
KUBE-EXT- ─► KUBE-SVC- all endpoints, or KUBE-SVL- those of this node ─► KUBE-SEP- one endpoint: DNAT
filter KUBE-SERVICES, KUBE-EXTERNAL-SERVICES: frontends without endpoints; KUBE-PROXY-FIREWALL: what KUBE-FW- left
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from bpfproxy.model.address import Family, Network, format_address
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
from bpfproxy.model.service import Protocol
from bpfproxy.netfilter.rows import ONCE, ChainKey, RuleKey
from bpfproxy.netfilter.rules import Rule
from bpfproxy.proxiers.base import Key, Op, Row
from bpfproxy.proxiers.iptables import names, rows
from bpfproxy.proxiers.iptables.node import NodeRules
from bpfproxy.proxiers.iptables.rows import FlowsKey

_LOCAL_SOURCE: Final = "-m addrtype --src-type LOCAL"


class IptablesRenderer:
    """Renders rules. `cluster_networks` is the local detector, at most one network per family."""

    def __init__(self, cluster_networks: Sequence[Network], node: NodeRules) -> None:
        self.cluster_networks = tuple(cluster_networks)
        self._pods: dict[Family, str] = {4 if one.version == 4 else 6: str(one) for one in cluster_networks}
        self._node = node

    def render(self, plan: ServicePlan) -> dict[Key, Row]:
        """The chains of each ServicePort and its rules in the chains that all Services share."""
        found: dict[Key, Row] = {}
        for (name, family), frontends in _ports(plan).items():
            port = _Port(name, family, frontends, self._pods.get(family))
            found.update(port.chains())
            found.update(dict.fromkeys(port.rules(), ONCE))
            if plan.health_check is not None:
                rule = (
                    f'-m comment --comment "{names.port_name(name)} health check node port"'
                    f" -m tcp -p tcp --dport {plan.health_check.port} -j ACCEPT"
                )
                found[RuleKey(family, "filter", names.NODEPORTS, Rule(rule))] = ONCE
        found.update(_flows(plan))
        return found

    def render_node(self, plan: NodePlan) -> dict[Key, Row]:
        """The chains that all Services share, the ways into them, masquerading, and what localhost NodePorts need."""
        return self._node.render(plan)

    def phase(self, op: Op) -> int:
        """See `Proxier.phase`."""
        return rows.phase(op)

    def describe(self, key: Key, row: Row) -> tuple[str, str, str]:
        """(table, key, row) as text for people."""
        return rows.describe(key, row)


Frontends = list[tuple[Frontend, FrontendSpec]]


def _ports(plan: ServicePlan) -> dict[tuple[ServicePortName, Family], Frontends]:
    found: dict[tuple[ServicePortName, Family], Frontends] = {}
    for frontend, spec in plan.frontends.items():
        found.setdefault((spec.service_port, frontend.family), []).append((frontend, spec))
    return found


def _flows(plan: ServicePlan) -> dict[Key, Row]:
    """The endpoints that keep the UDP flows that they have (rule 16)."""
    serving: dict[FlowsKey, set[tuple[bytes, int]]] = {}
    for frontend, spec in plan.frontends.items():
        if frontend.protocol is Protocol.UDP:
            row = serving.setdefault(FlowsKey(frontend.address, frontend.port), set())
            row.update((one.address, one.port) for one in (*spec.backends, *spec.draining))
    return {key: frozenset(row) for key, row in serving.items()}


class _Port:
    """The rules of one ServicePort in one family."""

    def __init__(self, name: ServicePortName, family: Family, frontends: Frontends, pods: str | None) -> None:
        self._name = name
        self._family = family
        self._pods = pods
        self._text = names.port_name(name)
        self._hash = names.port_hash(name)
        self._cluster: Frontends = []
        self._external: Frontends = []
        self._from_inside: FrontendSpec | None = None
        """What differs for pods and the node, under the policy Local."""
        self._pools: dict[Pool, FrontendSpec] = {}
        """A frontend of each pool that has endpoints."""
        for frontend, spec in frontends:
            if spec.kind is FrontendKind.CLUSTER_IP:
                self._cluster.append((frontend, spec))
            elif frontend.scope is Scope.EXTERNAL:
                self._external.append((frontend, spec))
            else:
                self._from_inside = spec
            if spec.backends:
                self._pools.setdefault(spec.pool, spec)

    # ---- chains of its own ----------------------------------------------------------------------------------------

    def chains(self) -> Iterator[tuple[ChainKey, tuple[Rule, ...]]]:
        """The chains of the port and of its endpoints."""
        endpoints: dict[Backend, FrontendSpec] = {}
        for pool, spec in self._pools.items():
            yield self._chain(self._pool_chain(pool), [*self._masquerade_cluster_ips(pool), *self._balance(spec)])
            endpoints.update(dict.fromkeys(spec.backends, spec))
        if self._reachable():
            yield self._chain(names.EXT + self._hash, self._external_rules(self._external[0][1]))
            if restricted := [one for one in self._external if self._ranges(one[1])]:
                yield self._chain(names.FW + self._hash, self._firewall(restricted))
        for backend, spec in endpoints.items():
            yield self._chain(names.endpoint_chain(self._name, str(backend)), self._endpoint(backend, spec))

    def _chain(self, chain: str, rules: Iterator[str] | list[str]) -> tuple[ChainKey, tuple[Rule, ...]]:
        return ChainKey(self._family, "nat", chain), tuple(Rule(rule) for rule in rules)

    def _pool_chain(self, pool: Pool) -> str:
        return (names.SVC if pool is Pool.CLUSTER else names.SVL) + self._hash

    def _reachable(self) -> bool:
        """Whether any client gets through by what is there for those outside the cluster."""
        inside = self._from_inside
        return bool(self._external) and bool(self._external[0][1].backends or (inside and inside.backends))

    def _masquerade_cluster_ips(self, pool: Pool) -> Iterator[str]:
        """Rule 7."""
        for frontend, spec in self._cluster:
            if spec.pool is not pool or spec.masquerade is Masquerade.NEVER:
                continue
            source = "" if spec.masquerade is Masquerade.ALWAYS else f" ! -s {self._pods}"
            yield f"{self._comment('cluster IP')}{self._to(frontend)}{source} -j {names.MARK_MASQ}"

    def _balance(self, spec: FrontendSpec) -> Iterator[str]:
        """Rules 20 and 21."""
        endpoints = sorted(str(backend) for backend in spec.backends)
        ways = [
            (f'-m comment --comment "{self._text} -> {endpoint}"', names.endpoint_chain(self._name, endpoint))
            for endpoint in endpoints
        ]
        if spec.affinity_timeout:
            for comment, chain in ways:
                seconds = spec.affinity_timeout
                yield f"{comment} -m recent --name {chain} --rcheck --seconds {seconds} --reap -j {chain}"
        for left, (comment, chain) in zip(range(len(ways), 0, -1), ways, strict=True):
            chance = f" -m statistic --mode random --probability {1 / left:0.10f}" if left > 1 else ""
            yield f"{comment}{chance} -j {chain}"

    def _external_rules(self, spec: FrontendSpec) -> Iterator[str]:
        """Rules 8 and 9."""
        destinations = f"for {self._text} external destinations"
        inside = self._from_inside
        if inside is None:
            yield f'-m comment --comment "masquerade traffic {destinations}" -j {names.MARK_MASQ}'
        else:
            # The short-cuts to all endpoints are there where none is local (rule 9); kube-proxy always has them.
            short_cut = inside.pool is Pool.CLUSTER and bool(inside.backends)
            everywhere = self._pool_chain(Pool.CLUSTER)
            if short_cut and self._pods:
                yield f'-m comment --comment "pod traffic {destinations}" -s {self._pods} -j {everywhere}'
            yield f'-m comment --comment "masquerade LOCAL traffic {destinations}" {_LOCAL_SOURCE} -j {names.MARK_MASQ}'
            if short_cut:
                yield f'-m comment --comment "route LOCAL traffic {destinations}" {_LOCAL_SOURCE} -j {everywhere}'
        if spec.backends:
            yield f"-j {self._pool_chain(spec.pool)}"

    def _firewall(self, restricted: Frontends) -> Iterator[str]:
        """Rule 13."""
        comment = self._comment("loadbalancer IP")
        spec = restricted[0][1]
        for network in self._ranges(spec):
            yield f"{comment} -s {network} -j {names.EXT}{self._hash}"
        if spec.admits_node:
            # Where the IP is one of the node's own, it is what the node sends from.
            for frontend, _ in restricted:
                yield f"{comment} -s {format_address(frontend.address)} -j {names.EXT}{self._hash}"
        yield f'-m comment --comment "other traffic to {self._text} will be dropped by {names.PROXY_FIREWALL}"'

    def _endpoint(self, backend: Backend, spec: FrontendSpec) -> Iterator[str]:
        comment = f"-m comment --comment {self._text}"
        yield f"{comment} -s {format_address(backend.address)} -j {names.MARK_MASQ}"  # rule 12
        chain = names.endpoint_chain(self._name, str(backend))
        remember = f" -m recent --name {chain} --set" if spec.affinity_timeout else ""
        yield f"{comment}{remember}{self._protocol()} -j DNAT --to-destination {backend}"

    # ---- rules in chains that Services share ----------------------------------------------------------------------

    def rules(self) -> Iterator[RuleKey]:
        """What leads to the chains above, or turns clients away."""
        for frontend, spec in self._cluster:
            to = self._to(frontend)
            if spec.backends:
                yield self._nat(f"{self._comment('cluster IP')}{to} -j {self._pool_chain(spec.pool)}")
            else:
                yield self._filter(names.SERVICES, f"{self._no_endpoints(spec)}{to} -j {spec.on_empty.name}")
        for frontend, spec in self._external:
            yield from self._external_rule(frontend, spec)

    def _external_rule(self, frontend: Frontend, spec: FrontendSpec) -> Iterator[RuleKey]:
        reachable = self._reachable()
        restricted = reachable and bool(self._ranges(spec))
        if reachable:
            chain = (names.FW if restricted else names.EXT) + self._hash
            if spec.kind is FrontendKind.NODE_PORT:
                rule = f"-m comment --comment {self._text}{self._protocol()} --dport {frontend.port} -j {chain}"
                yield RuleKey(self._family, "nat", names.NODEPORTS, Rule(rule))
            else:
                what = "external IP" if spec.kind is FrontendKind.EXTERNAL_IP else "loadbalancer IP"
                yield self._nat(f"{self._comment(what)}{self._to(frontend)} -j {chain}")
        if restricted:
            what = f"traffic not accepted by {names.FW}{self._hash}"
            yield self._filter(names.PROXY_FIREWALL, f"{self._comment(what)}{self._to(frontend)} -j DROP")
        if not spec.backends:
            refusal = f"-j {spec.on_empty.name}"
            yield self._filter(names.EXTERNAL_SERVICES, f"{self._no_endpoints(spec)}{self._to(frontend)} {refusal}")

    def _nat(self, rule: str) -> RuleKey:
        return RuleKey(self._family, "nat", names.SERVICES, Rule(rule))

    def _filter(self, chain: str, rule: str) -> RuleKey:
        return RuleKey(self._family, "filter", chain, Rule(rule))

    # ---- parts of rules -------------------------------------------------------------------------------------------

    def _ranges(self, spec: FrontendSpec) -> list[Network]:
        """Ranges of the other family alone restrict nothing, as in kube-proxy."""
        return [network for network in spec.source_ranges if network.version == self._family]

    def _comment(self, what: str) -> str:
        return f'-m comment --comment "{self._text} {what}"'

    def _no_endpoints(self, spec: FrontendSpec) -> str:
        return self._comment("has no endpoints" if spec.on_empty is OnEmpty.REJECT else "has no local endpoints")

    def _protocol(self) -> str:
        protocol = self._name.protocol.name.lower()
        return f" -m {protocol} -p {protocol}"

    def _to(self, frontend: Frontend) -> str:
        if any(frontend.address):
            return f"{self._protocol()} -d {format_address(frontend.address)} --dport {frontend.port}"
        return f" -m addrtype --dst-type LOCAL{self._protocol()} --dport {frontend.port}"
