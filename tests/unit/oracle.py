"""What a client meets, read from semantics.md rule by rule: slow, obvious, and independent of the planner.

It speaks of clients (somebody outside, a pod, the node itself), not of scopes, pools or masquerade modes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

from msgspec import Struct

from bpfproxy.model.address import ANY4, ANY6, Address, Family, Network, family_of
from bpfproxy.model.service import Endpoint, EndpointSlice, ObjectName, Protocol, Service, ServicePort
from bpfproxy.plan import NodeConfig

Target = tuple[Address, int]
"""ip:port of an endpoint."""


class Client(Enum):
    OUTSIDE = "outside"
    POD = "pod"
    NODE = "node"


class Place(Struct, frozen=True, order=True):
    """Address + port + protocol that somebody may send to; all zero: every address on which NodePorts answer."""

    address: Address
    port: int
    protocol: Protocol


class Answer(Struct, frozen=True):
    kind: str
    targets: frozenset[Target]
    refusal: str | None
    """Without targets: `reject` or `drop`."""
    masqueraded: bool | None
    """None: the page does not say, and nobody can tell."""
    keep: frozenset[Target]
    """Not for new connections, but UDP flows to them go on."""
    affinity: int
    source_ranges: tuple[Network, ...]


def answers(
    service: Service | None, slices: Iterable[EndpointSlice], node: NodeConfig, client: Client
) -> dict[Place, Answer]:
    """What `client` of `node` gets at every place of `service`."""
    result: dict[Place, Answer] = {}
    if service is None or not is_served(service):
        return result
    mine = [item for item in slices if item.service == service.name and not item.ignored]
    for port in service.ports:
        for family in families_of(service):
            members = endpoints_of(port, family, mine, node)
            for place, kind in places_of(service, port, family).items():
                if place not in result:
                    result[place] = answer(service, kind, members, node, family, client)
    return result


# Rule 6
def is_served(service: Service) -> bool:
    return not service.headless and service.type != "ExternalName" and not service.ignored


# Rule 18
def families_of(service: Service) -> set[Family]:
    addresses = service.cluster_ips or service.external_ips + service.load_balancer_ips
    return {family_of(address) for address in addresses}


def places_of(service: Service, port: ServicePort, family: Family) -> dict[Place, str]:
    """Rules 7 and 8."""
    places: dict[Place, str] = {}
    if port.node_port:
        places[Place(ANY4 if family == 4 else ANY6, port.node_port, port.protocol)] = "NodePort"
    for kind, addresses in (
        ("ExternalIP", service.external_ips),
        ("LoadBalancer", service.load_balancer_ips),
        ("ClusterIP", service.cluster_ips),
    ):
        for address in addresses:
            if family_of(address) == family:
                places[Place(address, port.port, port.protocol)] = kind
    return places


# Rules 4 and 5
def endpoints_of(
    port: ServicePort, family: Family, slices: Sequence[EndpointSlice], node: NodeConfig
) -> dict[Target, Endpoint]:
    every: dict[Target, list[Endpoint]] = {}
    for item in sorted(slices, key=lambda item: item.name):
        if item.family == family:
            for target in item.ports:
                if (target.name, target.protocol) == (port.name, port.protocol):
                    for endpoint in item.endpoints:
                        if family_of(endpoint.address) == family:
                            every.setdefault((endpoint.address, target.port), []).append(endpoint)
    return {
        target: next((endpoint for endpoint in same if is_local(endpoint, node)), same[0])
        for target, same in every.items()
    }


def is_local(endpoint: Endpoint, node: NodeConfig) -> bool:
    return bool(node.name) and endpoint.node_name == node.name


# Rules 1 and 3
def cluster_set(members: dict[Target, Endpoint], node: NodeConfig) -> frozenset[Target]:
    ready = {target: endpoint for target, endpoint in members.items() if endpoint.ready}
    node_hinted = {target for target, endpoint in ready.items() if node.name in endpoint.node_hints}
    zone_hinted = {target for target, endpoint in ready.items() if node.zone in endpoint.zone_hints}
    if node_hinted and all(endpoint.node_hints for endpoint in ready.values()):
        usable = node_hinted
    elif zone_hinted and all(endpoint.zone_hints for endpoint in ready.values()):
        usable = zone_hinted
    else:
        usable = set(ready)
    if usable:
        return frozenset(usable)
    return frozenset(target for target, endpoint in members.items() if endpoint.serving and endpoint.terminating)


# Rule 2
def local_set(members: dict[Target, Endpoint], node: NodeConfig) -> frozenset[Target]:
    here = {target: endpoint for target, endpoint in members.items() if is_local(endpoint, node)}
    ready = frozenset(target for target, endpoint in here.items() if endpoint.ready)
    if ready:
        return ready
    return frozenset(target for target, endpoint in here.items() if endpoint.serving and endpoint.terminating)


def answer(
    service: Service, kind: str, members: dict[Target, Endpoint], node: NodeConfig, family: Family, client: Client
) -> Answer:
    everywhere, here = cluster_set(members, node), local_set(members, node)
    detector = any(network.version == family for network in node.cluster_cidrs)
    masqueraded: bool | None
    if kind == "ClusterIP":
        targets = here if service.internal_local else everywhere  # rule 10
        masqueraded = node.masquerade_all or (detector and client is not Client.POD)  # rule 7
    elif not service.external_local:
        targets, masqueraded = everywhere, True  # rule 8
    elif here:
        targets = here  # rule 9; the node's own address replaces the node's own address, or it does not
        masqueraded = None if client is Client.NODE else False
    elif client is Client.NODE:
        targets, masqueraded = everywhere, True
    elif client is Client.POD and detector:
        targets, masqueraded = everywhere, False
    else:
        targets, masqueraded = here, False
    refusal = "drop" if everywhere else "reject"  # rule 11
    serving = frozenset(target for target, endpoint in members.items() if endpoint.serving)
    return Answer(
        kind,
        targets,
        None if targets else refusal,
        masqueraded,
        serving - targets,  # rule 16
        service.affinity_timeout,  # rule 15
        service.source_ranges if kind == "LoadBalancer" else (),  # rule 13
    )


# Rule 17
def local_ready(service: Service, slices: Iterable[EndpointSlice], node: NodeConfig) -> int:
    mine = [item for item in slices if item.service == service.name and not item.ignored]
    return len(
        {
            address
            for port in service.ports
            for family in families_of(service)
            for (address, _), endpoint in endpoints_of(port, family, mine, node).items()
            if endpoint.ready and is_local(endpoint, node)
        }
    )


def owners(places: dict[ObjectName, Iterable[Place]]) -> dict[Place, ObjectName]:
    """Of all Services that claim a place the first by name has it."""
    result: dict[Place, ObjectName] = {}
    for name in sorted(places):
        for place in places[name]:
            result.setdefault(place, name)
    return result
