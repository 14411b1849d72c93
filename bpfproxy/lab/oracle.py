"""What has to come out, by the semantics and by nothing else: written from their page, not from a proxier.

Numbers in comments are the rules'. Socket level: clients are pods and nodes whose processes the agent serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bpfproxy.lab.cases import Case, Endpoint, Probe
from bpfproxy.lab.layout import NODES, SPOTS

Answer = Literal["answered", "refused", "unreachable", "untouched"]
"""`untouched`: no frontend, so whatever the network says to the address itself; never an answer of a backend."""

_NOT_OURS = {"service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"}
"""Labels of Services and slices that are not for this proxy (6)."""

ERRORS: dict[Answer, str] = {"refused": "ECONNREFUSED", "unreachable": "EHOSTUNREACH"}


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
    source: str = ""
    """Whom the server sees: the client's own address (nothing is masqueraded at socket level)."""
    sticky: bool = False
    """All requests of a client go to one place, by whatever frontend of the port."""
    even: bool = False
    """Places take turns."""


def expect(probe: Probe) -> Expected:
    """The expectation for one probe."""
    case, client = probe.case, SPOTS[probe.client]
    if not _has_frontend(probe):
        return Expected("untouched")
    usable = _usable(probe)
    if isinstance(usable, str):
        return Expected(usable)
    address, port = case.frontend(probe.via, probe.port, probe.client, probe.family)
    return Expected(
        "answered",
        frozenset(endpoint.at for endpoint in usable),
        probe.port.target,
        peer=(f"::ffff:{address}" if probe.talk.endswith("-mapped") else address, port),
        source=client.address(probe.family),
        sticky=case.service.affinity > 0,  # 15
        even=case.service.scheduler == "round-robin" and not case.service.affinity,
    )


def _has_frontend(probe: Probe) -> bool:
    service = probe.case.service
    return (
        not service.headless  # 6
        and service.type != "ExternalName"
        and not service.labels.keys() & _NOT_OURS
        and not (probe.via == "LoadBalancer" and service.ip_mode == "Proxy")
        and probe.family in service.families  # 18
        and not (probe.via == "localhost" and SPOTS[probe.client].kind != "node")  # 14: the pod's own loopback
    )


def _usable(probe: Probe) -> list[Endpoint] | Answer:
    """Endpoints that may answer, or how the client is turned away."""
    case, client = probe.case, SPOTS[probe.client]
    everywhere = _cluster_set(case, client.node)
    local = _fallback([endpoint for endpoint in _endpoints(case) if SPOTS[endpoint.at].node == client.node])  # 2
    if probe.via == "ClusterIP":
        only_local = case.service.internal_policy == "Local"  # 10
    elif case.service.external_policy == "Local":  # 9
        inside = client.kind == "node" or case.detector
        only_local = bool(local) or not inside
    else:
        only_local = False  # 8
    chosen = local if only_local else everywhere
    if chosen:
        return chosen
    return "unreachable" if only_local and everywhere else "refused"  # 10, 11


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
