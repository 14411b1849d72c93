"""The JSON form of the Kubernetes objects that a service proxy reads: the fields it needs, under their names there.

Unknown fields are ignored, as Kubernetes does, and a field that is null is one that is absent. Wrong types are refused
by msgspec; everything else that can be wrong with a value is judged in `kube`.
"""

from __future__ import annotations

from msgspec import Struct, field


class Wire(Struct, rename="camel", gc=False):
    """Base: names in camel case, no cycles."""


class Meta(Wire):
    """metadata."""

    name: str | None = None
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class ServicePort(Wire):
    """spec.ports[] of a Service."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    node_port: int | None = None


class ClientIP(Wire):
    """spec.sessionAffinityConfig.clientIP."""

    timeout_seconds: int | None = None


class AffinityConfig(Wire):
    """spec.sessionAffinityConfig."""

    client_ip: ClientIP | None = field(default=None, name="clientIP")


class ServiceSpec(Wire):
    """spec of a Service."""

    ports: list[ServicePort] | None = None
    type: str | None = None
    cluster_ip: str | None = field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    external_ips: list[str] | None = field(default=None, name="externalIPs")
    load_balancer_source_ranges: list[str] | None = None
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    session_affinity: str | None = None
    session_affinity_config: AffinityConfig | None = None
    health_check_node_port: int | None = None
    publish_not_ready_addresses: bool | None = None


class Ingress(Wire):
    """status.loadBalancer.ingress[]."""

    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancer(Wire):
    """status.loadBalancer."""

    ingress: list[Ingress] | None = None


class ServiceStatus(Wire):
    """status of a Service."""

    load_balancer: LoadBalancer | None = None


class Service(Wire):
    """v1 Service."""

    metadata: Meta | None = None
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class EndpointPort(Wire):
    """ports[] of an EndpointSlice."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class Conditions(Wire):
    """endpoints[].conditions."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Wire):
    """endpoints[].hints.forZones[] and .forNodes[]."""

    name: str | None = None


class Hints(Wire):
    """endpoints[].hints."""

    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class Endpoint(Wire):
    """endpoints[]."""

    addresses: list[str] | None = None
    conditions: Conditions | None = None
    node_name: str | None = None
    hints: Hints | None = None


class EndpointSlice(Wire):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: Meta | None = None
    address_type: str | None = None
    ports: list[EndpointPort] | None = None
    endpoints: list[Endpoint] | None = None


class Taint(Wire):
    """spec.taints[] of a Node."""

    key: str | None = None


class NodeSpec(Wire):
    """spec of a Node."""

    taints: list[Taint] | None = None


class NodeAddress(Wire):
    """status.addresses[]."""

    type: str | None = None
    address: str | None = None


class NodeStatus(Wire):
    """status of a Node."""

    addresses: list[NodeAddress] | None = None


class Node(Wire):
    """v1 Node."""

    metadata: Meta | None = None
    spec: NodeSpec | None = None
    status: NodeStatus | None = None
