"""What the planner decides: frontends and the backends behind them."""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct

from bpfproxy.model.address import Address, Family, Network, format_endpoint
from bpfproxy.model.device import DevicePlan
from bpfproxy.model.service import ObjectName, Protocol, Scheduler


class Scope(IntEnum):
    """Which clients a frontend answers, where the two traffic policies differ.

    A frontend that treats all clients alike exists in scope EXTERNAL alone.
    """

    EXTERNAL = 0
    INTERNAL = 1


class FrontendKind(IntEnum):
    """Where a frontend's address comes from."""

    CLUSTER_IP = 0
    NODE_PORT = 1
    EXTERNAL_IP = 2
    LOAD_BALANCER = 3

    @property
    def label(self) -> str:
        """Kubernetes' spelling: `ClusterIP`, `NodePort`, `ExternalIP`, `LoadBalancer`."""
        return _KIND_LABELS[self]


_KIND_LABELS = {
    FrontendKind.CLUSTER_IP: "ClusterIP",
    FrontendKind.NODE_PORT: "NodePort",
    FrontendKind.EXTERNAL_IP: "ExternalIP",
    FrontendKind.LOAD_BALANCER: "LoadBalancer",
}


class Pool(IntEnum):
    """Which of a ServicePort's endpoints stand behind a frontend (rules 1 and 2)."""

    CLUSTER = 0
    LOCAL = 1


class OnEmpty(IntEnum):
    """What a client gets where no backend is usable (rules 10 and 11)."""

    REJECT = 0
    DROP = 1


class Masquerade(IntEnum):
    """When the client's address is replaced by the node's (rules 7 to 9)."""

    NEVER = 0
    NOT_LOCAL = 1
    """Unless the source is local-detected: in the cluster CIDR."""
    FROM_NODE = 2
    """Only traffic of the node itself."""
    ALWAYS = 3


class ServicePortName(Struct, frozen=True, order=True, gc=False):
    """The identity of one port of a Service, stable over any change of addresses and endpoints."""

    service: ObjectName
    port: str
    """Name of the port, empty if it has none."""
    protocol: Protocol

    def __str__(self) -> str:
        port = f":{self.port}" if self.port else ""
        return f"{self.service}{port}/{self.protocol.name}"


class Frontend(Struct, frozen=True, order=True, gc=False):
    """Address + port + protocol + scope that the node answers for. A NodePort's address is all zero (0.0.0.0 or ::):
    it stands for every address in `NodePlan.node_port_addresses`."""

    address: Address
    port: int
    protocol: Protocol
    scope: Scope = Scope.EXTERNAL

    @property
    def family(self) -> Family:
        """4 or 6."""
        return 4 if len(self.address) == 4 else 6

    def __str__(self) -> str:
        scope = "/internal" if self.scope else ""
        return f"{format_endpoint(self.address, self.port)}/{self.protocol.name}{scope}"


class Backend(Struct, frozen=True, order=True, gc=False):
    """A translation target."""

    address: Address
    port: int
    protocol: Protocol
    local: bool = False
    """Runs on this node."""

    def __str__(self) -> str:
        return format_endpoint(self.address, self.port)


class FrontendSpec(Struct, frozen=True):
    """All that a frontend does. Tuples of backends are sorted, free of duplicates, and one object for all frontends
    of a ServicePort that share them, so that comparing two specs is cheap."""

    service_port: ServicePortName
    kind: FrontendKind
    pool: Pool
    backends: tuple[Backend, ...] = ()
    draining: tuple[Backend, ...] = ()
    """Serving endpoints that get no new connections but keep the UDP flows they have (rule 16). Sorted."""
    on_empty: OnEmpty = OnEmpty.REJECT
    masquerade: Masquerade = Masquerade.NEVER
    affinity_timeout: int = 0
    """Seconds; 0 without affinity."""
    source_ranges: tuple[Network, ...] = ()
    """Clients outside the cluster must come from one of these; empty: from anywhere (rule 13)."""
    admits_node: bool = False
    """One of `source_ranges` holds the node's own address: the node is admitted whatever address it sends from."""
    scheduler: Scheduler | None = None
    """None: the node's default."""
    scoped: bool = False
    """True on the EXTERNAL row of a frontend that has an INTERNAL row too."""


class HealthCheck(Struct, frozen=True):
    """A healthCheckNodePort to serve (rule 17)."""

    service: ObjectName
    port: int
    local_ready: int
    """Ready endpoints on this node, each address counted once."""


class ServicePlan(Struct, frozen=True):
    """The plan of one Service."""

    name: ObjectName
    frontends: dict[Frontend, FrontendSpec]
    health_check: HealthCheck | None = None
    proxy_mode: str | None = None
    """The proxier that serves it; None: the node's default."""


class NodePlan(Struct, frozen=True):
    """What the plan says of the node itself."""

    node_port_addresses: frozenset[Address] = frozenset()
    """Addresses of the node on which NodePorts answer, loopback left out (rule 14)."""
    localhost_node_ports: tuple[Family, ...] = ()
    """Families in which NodePorts answer on the loopback addresses as well."""
    node_ports_everywhere: tuple[Family, ...] = ()
    """Families in which NodePorts answer on every address that the node has, whichever these are."""
    cluster_networks: tuple[Network, ...] = ()
    """Where pods are: the local detector."""
    sources: tuple[Address, ...] = ()
    """The node's own address of each family, for packets whose source is translated."""
    devices: tuple[DevicePlan, ...] = ()
    """What is done on which device, by index."""
    route_generation: int = 0
    """Another one: next hops that the datapath remembers may be wrong. 0: routes are not followed."""
    shared: bool = False
    """More than one proxy mode is on the node, serving or with connections that it has opened."""
