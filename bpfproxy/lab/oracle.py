"""What has to come out, by the semantics and by nothing else: written from their page, not from a proxier.

Numbers in comments are the rules'. A proxier of mode `ebpf` has hooks, which see the sockets of pods and nodes (socket
level); the packets of everybody else, and of everybody in the other modes, are translated on the way (packet level).
Where a mode is known to do otherwise than the page says, the expectation is what it does, and names the divergence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Final, Literal

from bpfproxy.lab.cases import NODE_PORTS, Case, Endpoint, Probe
from bpfproxy.lab.divergences import Divergence
from bpfproxy.lab.layout import NODES, PLACES, SERVED_PORTS, SPOTS, Spot
from bpfproxy.lab.place import Refuser

OurMode = Literal["ebpf", "iptables", "ipvs", "nftables", "userspace"]
KubeProxyMode = Literal["kube-proxy-iptables", "kube-proxy-ipvs", "kube-proxy-nftables"]
Mode = OurMode | KubeProxyMode
"""A proxier; the real kube-proxy is judged as ours of its mode, but for what it is known to do otherwise."""

Answer = Literal["answered", "refused", "unreachable", "dropped", "untouched"]
"""`unreachable` is how a hook says what is `dropped` at packet level.
`untouched`: no frontend, so whatever the network says to the address itself; never an answer of a backend."""

_NOT_OURS = {"service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"}
"""Labels of Services and slices that are not for this proxy (6)."""

ERRORS: dict[Answer, str] = {"refused": "ECONNREFUSED", "unreachable": "EHOSTUNREACH", "dropped": "TIMEOUT"}

_LOOPBACK_NODE_PORTS: Final[dict[str, tuple[int, ...]]] = {"ebpf": (4, 6), "iptables": (4,), "userspace": (4, 6)}
"""Families in which NodePorts answer on the loopback address."""


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
    sources: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Whom the server in each place may see: the client's own address, or one of a node's."""
    errors: frozenset[str] = frozenset()
    """What the client's socket may say if it is turned away."""
    refused_by: Refuser = ""
    """How ECONNREFUSED comes about; empty: in any way."""
    about: frozenset[tuple[str, int]] = frozenset()
    """Whom an ICMP error may be about, in the client's view: the frontend, not a backend."""
    by_packet: bool = False
    """No hook sees the client."""
    sticky: bool = False
    """All requests of a client go to one place, by whatever frontend of the port."""
    even: bool = False
    """Places take turns."""
    lost: frozenset[str] = frozenset()
    """Where requests come to that are refused there, or whose answers do not find the way back."""
    divergences: frozenset[Divergence] = frozenset()
    """Where this is not what the page says."""


def expect(probe: Probe, mode: Mode = "ebpf") -> Expected:
    """The expectation for one probe."""
    return _Judge(probe, mode).expect()


def masquerades(probe: Probe, server: Spot, mode: Mode) -> bool:
    """Whether the client's address is to be replaced on the way to a server. What comes from elsewhere and is delivered
    on the node itself is not sent on."""
    judge = _Judge(probe, mode)
    delivered = server.name == judge.entry and judge.client.kind != "node"
    return judge.masqueraded(server) and not delivered


class _Judge:
    """Of one probe."""

    def __init__(self, probe: Probe, mode: Mode) -> None:
        self.probe = probe
        self.mode = mode.removeprefix("kube-proxy-")
        self.kube_proxy = mode != self.mode
        self.case = probe.case
        self.service = probe.case.service
        self.client = PLACES[probe.client]
        self.entry = probe.entry
        hooked = self.client.kind != "client" and not self.client.home and self.entry == self.client.entry
        self.by_packet = mode != "ebpf" or not hooked
        self.is_node = self.client.name == self.entry
        """Whether the client is the node that judges it."""
        self.inside = self.is_node or (self.client.kind == "pod" and probe.case.agents.detector)
        """Whether the client counts as one in the cluster: pods do if the agent can tell them (9)."""
        self.divergences: set[Divergence] = set()

    def expect(self) -> Expected:
        if not self.has_frontend():
            return self.turned_away("untouched")
        if not self.admitted():
            return self.turned_away("dropped")
        usable = self.usable()
        if isinstance(usable, str):
            return self.no_endpoint() if usable == "refused" else self.turned_away(usable)
        probe, service = self.probe, self.service
        if probe.port.target not in SERVED_PORTS:
            return self.closed_port(self.places(usable))
        if all(self.answers_past_the_node(SPOTS[endpoint.at]) for endpoint in usable):
            return replace(self.turned_away("dropped"), lost=self.places(usable), port=probe.port.target)
        return Expected(
            "answered",
            self.places(usable),
            probe.port.target,
            peer=self.frontend(),
            sources={endpoint.at: self.sources(SPOTS[endpoint.at]) for endpoint in usable},
            by_packet=self.by_packet,
            sticky=service.affinity > 0,  # 15
            # Packets of two flows may meet on two CPUs, which then take one turn together.
            even=service.scheduler == "round-robin" and not service.affinity and not self.by_packet,
            divergences=frozenset(self.divergences),
        )

    @staticmethod
    def places(usable: Iterable[Endpoint]) -> frozenset[str]:
        return frozenset(endpoint.at for endpoint in usable)

    def frontend(self) -> tuple[str, int]:
        """As the client's socket shows it."""
        probe = self.probe
        address, port = self.case.frontend(probe.via, probe.port, probe.client, probe.family)
        return f"::ffff:{address}" if probe.talk.endswith("-mapped") else address, port

    def turned_away(self, answer: Answer, by: Refuser = "") -> Expected:
        errors = {ERRORS.get(answer, "")}
        if self.by_packet and self.probe.talk.startswith("udp") and self.is_node:
            errors.add("EPERM")  # a rule of the sender's own node stops a datagram while it is being sent
        return Expected(
            answer,
            errors=frozenset(errors),
            refused_by=by,
            about=frozenset((self.frontend(),)),
            by_packet=self.by_packet,
            divergences=frozenset(self.divergences),
        )

    def no_endpoint(self) -> Expected:
        """Refused by the first who knows (11)."""
        if not self.by_packet:
            return self.turned_away("refused", "hook")
        if self.kube_proxy and self.mode == "iptables" and self.leaves_the_node():
            self.divergences.add("leaves-the-node")
            return self.turned_away("untouched")
        if self.mode == "userspace" and not self.probe.talk.startswith("udp"):
            self.divergences.add("refused-by-reset")
            return self.turned_away("refused", "reset")
        return self.turned_away("refused", "icmp")

    def leaves_the_node(self) -> bool:
        """Whether it is the node itself that sends, to an external address that is not its own."""
        address, _ = self.case.frontend(self.probe.via, self.probe.port, self.probe.client, self.probe.family)
        here = SPOTS[self.entry].address(self.probe.family)
        return self.is_node and self.probe.via in ("ExternalIP", "LoadBalancer") and address != here

    def closed_port(self, places: frozenset[str]) -> Expected:
        """Nobody listens on the target: the backend's own refusal comes back, about the frontend."""
        datagrams, target = self.probe.talk.startswith("udp"), self.probe.port.target
        if self.mode == "userspace":
            self.divergences.add("accepts-first")
            found = self.turned_away("refused")
            found = replace(found, errors=frozenset(("TIMEOUT" if datagrams else "ECONNRESET",)))
        elif datagrams and not self.by_packet:
            self.divergences.add("errors-about-backends")
            addresses = (SPOTS[place].address(self.probe.family) for place in places)
            mapped = "::ffff:" if self.probe.talk.endswith("-mapped") else ""
            about = frozenset((f"{mapped}{address}", target) for address in addresses)
            found = replace(self.turned_away("refused", "icmp"), about=about)
        else:
            found = self.turned_away("refused", "icmp" if datagrams else "reset")
        return replace(found, lost=places, port=target)

    def has_frontend(self) -> bool:
        probe, service = self.probe, self.service
        if (
            service.headless  # 6
            or service.type == "ExternalName"
            or service.labels.keys() & _NOT_OURS
            or (probe.via == "LoadBalancer" and service.ip_mode == "Proxy")
            or probe.family not in service.families  # 18
            or (probe.via == "localhost" and self.client.kind != "node")  # 14: the pod's own loopback
        ):
            return False
        if probe.via in NODE_PORTS and not self.has_node_ports():
            return False
        if probe.via == "localhost" and probe.family not in _LOOPBACK_NODE_PORTS.get(self.mode, ()):
            self.divergences.add("no-loopback-node-ports")
            return False
        return True

    def has_node_ports(self) -> bool:
        """Whether NodePorts answer on the address by which the client comes (14)."""
        probe, selectors = self.probe, self.case.agents.nodeport_addresses
        if not selectors:
            if probe.via == "gateway" and self.mode == "nftables":
                self.divergences.add("primary-node-ports")
                return False
            return True
        address, _ = self.case.frontend(probe.via, probe.port, probe.client, probe.family)
        primary = address == SPOTS[self.entry].address(probe.family)
        return any(primary if one == "primary" else ip_address(address) in ip_network(one) for one in selectors)

    def usable(self) -> list[Endpoint] | Answer:
        """Endpoints that may answer, or how the client is turned away."""
        entry = self.entry
        everywhere = _cluster_set(self.case, entry)
        local = _fallback([endpoint for endpoint in _endpoints(self.case) if SPOTS[endpoint.at].node == entry])  # 2
        if self.probe.via == "ClusterIP":
            only_local = self.service.internal_policy == "Local"  # 10
        elif self.service.external_policy == "Local":  # 9
            only_local = bool(local) or not self.inside
            if self.kube_proxy and self.inside and local and local != everywhere:
                self.divergences.add("always-short-cut")
                only_local = False
            if self.kube_proxy and self.mode == "nftables" and self.leaves_the_node() and not local and everywhere:
                self.divergences.add("dropped-at-output")
                only_local = True
        else:
            only_local = False  # 8
        chosen = local if only_local else everywhere
        if chosen:
            return chosen
        if not (only_local and everywhere):
            return "refused"  # 11
        if self.by_packet:
            return "dropped"  # 10, 11
        self.divergences.add("told-at-connect")
        return "unreachable"

    def admitted(self) -> bool:
        """By the Service's source ranges (13)."""
        ranges = [one for one in map(ip_network, self.service.source_ranges) if one.version == self.probe.family]
        if not ranges or self.probe.via != "LoadBalancer":
            return True
        address = ip_address(self.client.address(self.probe.family))
        if any(address in one for one in ranges):
            return True
        if self.mode == "ebpf" and (self.inside or not self.by_packet):
            self.divergences.add("ranges-bind-outside-clients")
            return True
        return False

    def sources(self, server: Spot) -> frozenset[str]:
        """Whom the server sees."""
        own = frozenset((self.client.address(self.probe.family),))
        if self.mode == "userspace":
            self.divergences.add("address-of-the-node")
            return self.of_the_node(server)
        if self.mode != "ebpf":
            if not self.masqueraded(server):
                return own
            # What is delivered on the node does not leave it.
            return own if server.name == self.entry else self.of_the_node(server)
        if not self.by_packet:
            if self.masqueraded(server):
                self.divergences.add("no-masquerade-of-sockets")
            return own
        # It sees the node's address if it is the client itself (12), or elsewhere and would answer past the node.
        if self.client.v4 == server.v4:
            return self.of_the_node(server)
        if not self.masqueraded(server):
            if self.probe.via != "ClusterIP" or self.case.agents.detector or server.node == self.entry:
                return own
            self.divergences.add("masquerade-without-detector")
            return self.of_the_node(server)
        everything = self.probe.via == "ClusterIP" and self.case.agents.masquerade_all
        if server.node == self.entry and not everything:
            self.divergences.add("address-kept")
            return own
        return self.of_the_node(server)

    def answers_past_the_node(self, server: Spot) -> bool:
        """Without masquerading (7: no local detector) the answer takes the straight way to a client outside, which
        knows nothing of the server. Hooks and eBPF's packet level see to it that it does not."""
        if self.mode in ("ebpf", "userspace") or self.client.kind != "client":
            return False
        return server.node != self.entry and not self.masqueraded(server)

    def masqueraded(self, server: Spot) -> bool:
        """By the page: hairpin (12), clients that are not local-detected (7), external addresses (8), the node (9)."""
        if self.client.v4 == server.v4 and self.client.kind == "pod":
            return True
        if self.probe.via == "ClusterIP":
            agents = self.case.agents
            return agents.masquerade_all or (agents.detector and self.client.kind != "pod")
        return self.service.external_policy == "Cluster" or self.is_node

    def of_the_node(self, server: Spot) -> frozenset[str]:
        """The addresses that the client's node may show towards a server: that of the device by which packets leave, or
        the node's own."""
        node, family = SPOTS[self.entry], self.probe.family
        if server.node != node.name:
            return frozenset((node.address(family),))
        return frozenset((NODES[node.name].gateway(family), node.address(family)))


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
