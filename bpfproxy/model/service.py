"""Kubernetes objects after decoding: what the user wants, validated, with addresses packed.

These carry the fields that a service proxy needs and no others; two objects compare equal exactly when they mean
the same to it, so a change in any other field is no work.
"""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct

from bpfproxy.model.address import Address, Family, Network

AFFINITY_TIMEOUT_DEFAULT = 10800
"""Seconds that a ClientIP affinity lasts unless the Service says otherwise (Kubernetes' default)."""


class Protocol(IntEnum):
    """IP protocol numbers."""

    TCP = 6
    UDP = 17
    SCTP = 132


class Scheduler(IntEnum):
    """How a backend is chosen for a new connection."""

    RANDOM = 0
    ROUND_ROBIN = 1
    MAGLEV = 2

    @property
    def label(self) -> str:
        """The name in flags and annotations: `random`, `round-robin`, `maglev`."""
        return self.name.lower().replace("_", "-")


class ObjectName(Struct, frozen=True, order=True, gc=False):
    """Namespace and name of a Kubernetes object."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ServicePort(Struct, frozen=True, gc=False):
    """One entry of `spec.ports`. `node_port` is 0 where none is allocated."""

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0


class Service(Struct, frozen=True):
    """One Service that this proxy may have to serve. Whether it does is the planner's decision (rule 6)."""

    name: ObjectName
    ports: tuple[ServicePort, ...] = ()
    type: str = "ClusterIP"
    cluster_ips: tuple[Address, ...] = ()
    """At most one per family; empty for ExternalName and for Services without an address yet."""
    headless: bool = False
    external_ips: tuple[Address, ...] = ()
    load_balancer_ips: tuple[Address, ...] = ()
    """`status.loadBalancer.ingress[].ip` whose ipMode is VIP (entries with ipMode Proxy are left out)."""
    source_ranges: tuple[Network, ...] = ()
    external_local: bool = False
    """externalTrafficPolicy is Local."""
    internal_local: bool = False
    """internalTrafficPolicy is Local."""
    affinity_timeout: int = 0
    """Seconds of sessionAffinity ClientIP; 0 without affinity."""
    health_check_node_port: int = 0
    publish_not_ready: bool = False
    ignored: bool = False
    """Carries the label of another service proxy, or the headless label (rule 6)."""
    scheduler: Scheduler | None = None
    """From the annotation `bpfproxy.io/scheduler`; None: the node's default."""
    proxy_mode: str | None = None
    """From the annotation `bpfproxy.io/proxy-mode`: the proxier that serves it; None: the node's default."""


class EndpointPort(Struct, frozen=True, gc=False):
    """A named port of an EndpointSlice. Entries without a number are left out at decoding (rule 4)."""

    name: str
    protocol: Protocol
    port: int


class Endpoint(Struct, frozen=True, gc=False):
    """One member of an EndpointSlice. Nil conditions are resolved already (rule 4)."""

    address: Address
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node_name: str = ""
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()


class EndpointSlice(Struct, frozen=True):
    """Some endpoints of one Service, of one family, with the ports that they all serve."""

    name: ObjectName
    service: ObjectName
    """From the label `kubernetes.io/service-name`."""
    family: Family
    ports: tuple[EndpointPort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    ignored: bool = False
    """Carries the label of another service proxy, or the headless label (rule 6)."""


class Node(Struct, frozen=True):
    """A cluster node, as far as the proxy cares: where it is, and whether it is going away (rule 29)."""

    name: str
    zone: str = ""
    addresses: tuple[Address, ...] = ()
    """InternalIPs first, in their order; the first of each family is the primary one."""
    leaving: bool = False
    """Being deleted, or tainted ToBeDeletedByClusterAutoscaler."""
