"""What has to come out, by the semantics and by nothing else: written from their page, not from a proxier.

Numbers in comments are the rules'. Clients are pods and nodes whose processes the agent's hooks see (socket level), and
pods and outside clients whose packets are translated on the way (packet level).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Literal

from bpfproxy.lab.cases import Case, Endpoint, Probe
from bpfproxy.lab.layout import NODES, PLACES, SPOTS, Spot

Answer = Literal["answered", "refused", "unreachable", "dropped", "untouched"]
"""`unreachable` is how a hook says what is `dropped` at packet level.
`untouched`: no frontend, so whatever the network says to the address itself; never an answer of a backend."""

_NOT_OURS = {"service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"}
"""Labels of Services and slices that are not for this proxy (6)."""

ERRORS: dict[Answer, str] = {"refused": "ECONNREFUSED", "unreachable": "EHOSTUNREACH", "dropped": "TIMEOUT"}


@dataclass(frozen=True)
class Expected:
    """What a client and the servers must see of a probe."""

    answer: Answer
    places: frozenset[str] = frozenset()
    """Where the answers may come from; with enough requests, each of them does, unless one is stuck to."""
    port: int = 0
    """The server's port."""
    peer: tuple[str, int] | None = None
    """Whom the client's socket shows as its peer: the frontend, never the backend."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Whom the server in each place sees: the client's own address, or that of a node."""
    told: bool = True
    """If it is turned away: whether the client's socket hears of it."""
    by_packet: bool = False
    """No hook sees the client."""

    @property
    def error(self) -> str:
        """What the client's socket says if it is turned away."""
        return ERRORS[self.answer] if self.told else "TIMEOUT"

    sticky: bool = False
    """All requests of a client go to one place, by whatever frontend of the port."""
    even: bool = False
    """Places take turns."""


def expect(probe: Probe) -> Expected:
    """The expectation for one probe."""
    case = probe.case
    if not _has_frontend(probe):
        return Expected("untouched")
    if not _admitted(probe):
        return Expected("dropped")
    usable = _usable(probe)
    if isinstance(usable, str):
        # An unconnected socket is not told of ICMP errors.
        told = not (_by_packet(probe) and probe.talk.startswith("udp-unconnected"))
        return Expected(usable, told=told, by_packet=_by_packet(probe))
    address, port = case.frontend(probe.via, probe.port, probe.client, probe.family)
    return Expected(
        "answered",
        frozenset(endpoint.at for endpoint in usable),
        probe.port.target,
        peer=(f"::ffff:{address}" if probe.talk.endswith("-mapped") else address, port),
        sources={endpoint.at: _source(probe, SPOTS[endpoint.at]) for endpoint in usable},
        sticky=case.service.affinity > 0,  # 15
        # Packets of two flows may meet on two CPUs, which then take one turn together.
        even=case.service.scheduler == "round-robin" and not case.service.affinity and not _by_packet(probe),
    )


def _has_frontend(probe: Probe) -> bool:
    service = probe.case.service
    return (
        not service.headless  # 6
        and service.type != "ExternalName"
        and not service.labels.keys() & _NOT_OURS
        and not (probe.via == "LoadBalancer" and service.ip_mode == "Proxy")
        and probe.family in service.families  # 18
        and not (probe.via == "localhost" and PLACES[probe.client].kind != "node")  # 14: the pod's own loopback
    )


def _usable(probe: Probe) -> list[Endpoint] | Answer:
    """Endpoints that may answer, or how the client is turned away."""
    case, client = probe.case, PLACES[probe.client]
    everywhere = _cluster_set(case, client.entry)
    local = _fallback([endpoint for endpoint in _endpoints(case) if SPOTS[endpoint.at].node == client.entry])  # 2
    if probe.via == "ClusterIP":
        only_local = case.service.internal_policy == "Local"  # 10
    elif case.service.external_policy == "Local":  # 9
        only_local = bool(local) or not _inside(probe)
    else:
        only_local = False  # 8
    chosen = local if only_local else everywhere
    if chosen:
        return chosen
    if only_local and everywhere:
        return "dropped" if _by_packet(probe) else "unreachable"  # 10, 11
    return "refused"  # 11


def _by_packet(probe: Probe) -> bool:
    client = PLACES[probe.client]
    return client.kind == "client" or bool(client.home)


def _inside(probe: Probe) -> bool:
    """Whether the client counts as one in the cluster: pods do if the agent can tell them (9)."""
    kind = PLACES[probe.client].kind
    return kind == "node" or (kind == "pod" and probe.case.detector)


def _admitted(probe: Probe) -> bool:
    """By the Service's source ranges, which bind outside clients (13)."""
    ranges = [one for one in map(ip_network, probe.case.service.source_ranges) if one.version == probe.family]
    bound = ranges and probe.via == "LoadBalancer" and _by_packet(probe) and not _inside(probe)
    return not bound or any(ip_address(PLACES[probe.client].address(probe.family)) in one for one in ranges)


def _source(probe: Probe, server: Spot) -> str:
    """Whom the server sees. Nothing is masqueraded at socket level. At packet level it sees the node's address on the
    way to it if it is the client itself (12), or elsewhere and would answer past the node (7 to 9)."""
    client, case = PLACES[probe.client], probe.case
    if not _by_packet(probe):
        return client.address(probe.family)
    if client.v4 == server.v4:
        net = NODES[client.node]
        return net.gateway4 if probe.family == 4 else net.gateway6
    always = probe.via != "ClusterIP" and case.service.external_policy == "Cluster"
    if server.node != client.entry and (always or not _inside(probe)):
        return SPOTS[client.entry].address(probe.family)
    return client.address(probe.family)


def _endpoints(case: Case) -> tuple[Endpoint, ...]:
    return () if case.service.slice_labels.keys() & _NOT_OURS else case.service.endpoints  # 6


def _ready(endpoint: Endpoint) -> bool:
    return endpoint.ready is not False  # 4


def _leaving(endpoint: Endpoint) -> bool:
    return endpoint.serving is not False and endpoint.terminating is True  # 4


def _fallback(endpoints: list[Endpoint]) -> list[Endpoint]:
    """The Ready ones, else those that terminate and still serve."""
    return [one for one in endpoints if _ready(one)] or [one for one in endpoints if _leaving(one)]


def _cluster_set(case: Case, node: str) -> list[Endpoint]:
    ready = [endpoint for endpoint in _endpoints(case) if _ready(endpoint)]
    return _near(ready, node) or _fallback(list(_endpoints(case)))  # 1


def _near(ready: list[Endpoint], node: str) -> list[Endpoint]:
    """Topology: hints apply if every Ready endpoint has one and one matches; nodes first, then zones (3)."""
    for by_node in (True, False):
        hints = [one.nodes if by_node else one.zones for one in ready]
        here = node if by_node else NODES[node].zone
        if all(hints) and any(here in hint for hint in hints):
            return [one for one, hint in zip(ready, hints, strict=True) if here in hint]
    return ready
