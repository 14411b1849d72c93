"""For tests of the planner: a Service of many frontends, endpoints of all kinds, and what is planned of them."""

from __future__ import annotations

import ipaddress

from msgspec.structs import replace

from bpfproxy.model.address import Family, parse_address
from bpfproxy.model.frontend import (
    Backend,
    FrontendSpec,
    ServicePlan,
)
from bpfproxy.model.service import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectName,
    Protocol,
    Service,
    ServicePort,
)
from bpfproxy.plan import NodeConfig, plan_service

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
WEB = ObjectName("ns1", "web")
NODE = NodeConfig("n1", zone="east")
DETECTING = NodeConfig("n1", cluster_cidrs=(ipaddress.ip_network("10.0.0.0/8"),))

PLAIN = Service(WEB, (ServicePort("http", TCP, 80),), cluster_ips=(parse_address("172.30.0.1"),))
OPEN = replace(
    PLAIN,
    type="LoadBalancer",
    ports=(ServicePort("http", TCP, 80, 30080),),
    external_ips=(parse_address("192.0.2.1"),),
    load_balancer_ips=(parse_address("198.51.100.1"),),
)
CLUSTER_IP, EXTERNAL_IP, LOAD_BALANCER, NODE_PORT = "172.30.0.1:80", "192.0.2.1:80", "198.51.100.1:80", "0.0.0.0:30080"
EXTERNALS = {EXTERNAL_IP, LOAD_BALANCER, NODE_PORT}


def endpoint(
    text: str, where: str = "n1", *, ready: bool = True, serving: bool = True, terminating: bool = False,
    zones: tuple[str, ...] = (), nodes: tuple[str, ...] = (),
) -> Endpoint:  # fmt: skip
    return Endpoint(parse_address(text), ready, serving, terminating, where, zones, nodes)


def draining(text: str, where: str = "n1") -> Endpoint:
    return endpoint(text, where, ready=False, serving=True, terminating=True)


def dead(text: str, where: str = "n1") -> Endpoint:
    return endpoint(text, where, ready=False, serving=False, terminating=True)


def unready(text: str, where: str = "n1") -> Endpoint:
    return endpoint(text, where, ready=False, serving=False)


def hinted(text: str, zones: str = "", nodes: str = "", where: str = "n2") -> Endpoint:
    return endpoint(text, where, zones=tuple(zones.split()), nodes=tuple(nodes.split()))


def endpoint_slice(
    *endpoints: Endpoint, name: str = "web-1", family: Family = 4, port: int = 8080, port_name: str = "http",
    protocol: Protocol = TCP,
) -> EndpointSlice:  # fmt: skip
    ports = (EndpointPort(port_name, protocol, port),)
    return EndpointSlice(ObjectName("ns1", name), WEB, family, ports, endpoints)


def plan(service: Service, *slices: EndpointSlice, node: NodeConfig = NODE) -> ServicePlan:
    result = plan_service(service, slices, node)
    assert result is not None
    return result


def specs(found: ServicePlan) -> dict[str, FrontendSpec]:
    return {str(frontend).replace("/TCP", ""): spec for frontend, spec in found.frontends.items()}


def texts(backends: tuple[Backend, ...]) -> list[str]:
    return [str(backend) for backend in backends]


def cluster_pool(*endpoints: Endpoint, node: NodeConfig = NODE) -> list[str]:
    """Last bytes of the addresses behind the ClusterIP."""
    found = specs(plan(PLAIN, endpoint_slice(*endpoints), node=node))[CLUSTER_IP]
    return [str(backend).removeprefix("10.0.0.").removesuffix(":8080") for backend in found.backends]


def local_pool(*endpoints: Endpoint) -> list[str]:
    """The same for a ClusterIP with internalTrafficPolicy Local."""
    service = replace(PLAIN, internal_local=True)
    found = specs(plan(service, endpoint_slice(*endpoints)))[CLUSTER_IP]
    return [str(backend).removeprefix("10.0.0.").removesuffix(":8080") for backend in found.backends]
