"""One Service and its EndpointSlices → the frontends that the node answers for. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from bpfproxy.model.address import ANY4, ANY6, Address, Family, contains, family_of
from bpfproxy.model.frontend import (
    Frontend,
    FrontendKind,
    FrontendSpec,
    HealthCheck,
    Masquerade,
    OnEmpty,
    Pool,
    Scope,
    ServicePlan,
    ServicePortName,
)
from bpfproxy.model.service import EndpointSlice, Service, ServicePort
from bpfproxy.plan.node import NodeConfig
from bpfproxy.plan.topology import Members, select


def plan_service(service: Service | None, slices: Sequence[EndpointSlice], node: NodeConfig) -> ServicePlan | None:
    """What `node` does for `service`, whose EndpointSlices are `slices`. None: nothing (rule 6).

    Where two of its own addresses are the same, the ClusterIP goes before the LoadBalancer's, and that (it may be
    restricted to source ranges) before an external IP.
    """
    if service is None or service.ignored or service.headless or service.type == "ExternalName":
        return None
    frontends: dict[Frontend, FrontendSpec] = {}
    local = service.internal_local or service.external_local
    local_ready: set[Address] = set()
    for family in _families(service):
        for port in service.ports:
            selection = select(port, family, slices, node, local=local)
            local_ready |= selection.local_ready
            _Port(service, port, family, selection.cluster, selection.local, node).add_to(frontends)
    health_check = _health_check(service, len(local_ready))
    if not frontends and health_check is None:
        return None
    return ServicePlan(service.name, frontends, health_check, service.proxy_mode)


def _families(service: Service) -> Sequence[Family]:
    """Those of its cluster IPs; as long as it has none, those of its other addresses (rule 18)."""
    addresses = service.cluster_ips or (*service.external_ips, *service.load_balancer_ips)
    if len(addresses) == 1:
        return (family_of(addresses[0]),)
    return sorted({family_of(address) for address in addresses})


def _health_check(service: Service, local_ready: int) -> HealthCheck | None:
    if service.type == "LoadBalancer" and service.external_local and service.health_check_node_port:
        return HealthCheck(service.name, service.health_check_node_port, local_ready)
    return None


class _Port(Struct, frozen=True, gc=False):
    """One ServicePort in one family, with its endpoints chosen."""

    service: Service
    port: ServicePort
    family: Family
    cluster: Members
    local: Members
    node: NodeConfig

    def add_to(self, frontends: dict[Frontend, FrontendSpec]) -> None:
        name = ServicePortName(self.service.name, self.port.name, self.port.protocol)
        self._add_cluster_ips(name, frontends)
        for kind, address, number in self._external():
            self._add_external(name, kind, Frontend(address, number, self.port.protocol), frontends)

    def _add_cluster_ips(self, name: ServicePortName, frontends: dict[Frontend, FrontendSpec]) -> None:
        """Rules 7 and 10."""
        pool = Pool.LOCAL if self.service.internal_local else Pool.CLUSTER
        if self.node.masquerade_all:
            masquerade = Masquerade.ALWAYS
        else:
            masquerade = Masquerade.NOT_LOCAL if self.node.detects_local(self.family) else Masquerade.NEVER
        for address in self._mine(self.service.cluster_ips):
            spec = self._spec(name, FrontendKind.CLUSTER_IP, pool, masquerade)
            frontends.setdefault(Frontend(address, self.port.port, self.port.protocol), spec)

    def _external(self) -> Iterator[tuple[FrontendKind, Address, int]]:
        """What clients outside the cluster may use."""
        for address in self._mine(self.service.load_balancer_ips):
            yield FrontendKind.LOAD_BALANCER, address, self.port.port
        for address in self._mine(self.service.external_ips):
            yield FrontendKind.EXTERNAL_IP, address, self.port.port
        if self.port.node_port:
            yield FrontendKind.NODE_PORT, ANY4 if self.family == 4 else ANY6, self.port.node_port

    def _add_external(
        self, name: ServicePortName, kind: FrontendKind, frontend: Frontend, frontends: dict[Frontend, FrontendSpec]
    ) -> None:
        """Rules 8 and 9."""
        if frontend in frontends:
            return
        if not self.service.external_local:
            frontends[frontend] = self._spec(name, kind, Pool.CLUSTER, Masquerade.ALWAYS)
            return
        frontends[frontend] = self._spec(name, kind, Pool.LOCAL, Masquerade.NEVER, scoped=True)
        internal = Frontend(frontend.address, frontend.port, frontend.protocol, Scope.INTERNAL)
        pool = Pool.LOCAL if self.local.backends else Pool.CLUSTER
        frontends[internal] = self._spec(name, kind, pool, Masquerade.FROM_NODE)

    def _spec(
        self, name: ServicePortName, kind: FrontendKind, pool: Pool, masquerade: Masquerade, *, scoped: bool = False
    ) -> FrontendSpec:
        members = self.cluster if pool is Pool.CLUSTER else self.local
        service = self.service
        ranges = service.source_ranges if kind is FrontendKind.LOAD_BALANCER else ()
        return FrontendSpec(
            service_port=name,
            kind=kind,
            pool=pool,
            backends=members.backends,
            draining=members.draining,
            # Rule 11; no cluster endpoint is left for the pool CLUSTER where it is empty.
            on_empty=OnEmpty.DROP if pool is Pool.LOCAL and self.cluster.backends else OnEmpty.REJECT,
            masquerade=masquerade,
            affinity_timeout=service.affinity_timeout,
            source_ranges=ranges,
            admits_node=bool(ranges) and any(contains(ranges, address) for address in self.node.primary),
            scheduler=service.scheduler,
            scoped=scoped,
        )

    def _mine(self, addresses: tuple[Address, ...]) -> Sequence[Address]:
        """Those of this family."""
        return [address for address in addresses if family_of(address) == self.family] if addresses else ()
