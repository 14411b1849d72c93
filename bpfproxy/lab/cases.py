"""Scenarios as data: a Service, its endpoints placed in the lab, and who talks to it how.

The data are in `data/*.yaml`; what has to come out is computed by `bpfproxy.lab.oracle`. All cases fit into one
cluster at the same time: each has its own namespace, addresses and node ports.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

import msgspec

from bpfproxy.lab.layout import CLUSTER_CIDRS, NODES, PLACES, SPOTS, Family
from bpfproxy.lab.place import Flow, Protocol

Via = Literal["ClusterIP", "NodePort", "localhost", "gateway", "other-node", "ExternalIP", "LoadBalancer"]
"""The kind of frontend that a client goes by. NodePorts: on the main address of the client's own node or gateway
(`NodePort`), on the loopback address, on the address that is the pods' gateway, on the main one of the other node."""

NODE_PORTS: frozenset[Via] = frozenset(("NodePort", "localhost", "gateway", "other-node"))

Talk = Literal["http", "tcp", "tcp-mapped", "udp", "udp-mapped", "udp-unconnected", "udp-unconnected-mapped"]
"""How a client talks; `mapped`: through a v6 socket to the v4-mapped form of an IPv4 address."""

DATA = Path(__file__).parent / "data"

_RANGES: dict[tuple[Via, Family], str] = {
    ("ClusterIP", 4): "10.96.1.0",
    ("ClusterIP", 6): "fd00:10:96::1:0",
    ("ExternalIP", 4): "198.18.1.0",
    ("ExternalIP", 6): "fd00:198:18::1:0",
    ("LoadBalancer", 4): "198.19.1.0",
    ("LoadBalancer", 6): "fd00:198:19::1:0",
}
_FIRST_NODE_PORT = 20000
"""Scenes of a long run are numbered on: there has to be room before 32768, where ports of clients begin."""
_PORTS_PER_CASE = 8


class Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One port of a Service. Servers of the lab listen on the targets in `layout.SERVED_PORTS`."""

    port: int
    target: int = 8080
    name: str = ""
    protocol: Literal["TCP", "UDP"] = "TCP"


class Endpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One endpoint: the place where it runs, its conditions (None: not set) and its hints."""

    at: str
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Service of a case, in the words of Kubernetes."""

    ports: tuple[Port, ...]
    endpoints: tuple[Endpoint, ...] = ()
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    headless: bool = False
    external_ips: bool = False
    external_ips_of: str = ""
    """The node whose own addresses are the external ones."""
    ip_mode: Literal["VIP", "Proxy"] = "VIP"
    source_ranges: tuple[str, ...] = ()
    affinity: int = 0
    """timeoutSeconds of ClientIP, 0 without."""
    internal_policy: Literal["Cluster", "Local"] = "Cluster"
    external_policy: Literal["Cluster", "Local"] = "Cluster"
    traffic_distribution: str = ""
    publish_not_ready: bool = False
    scheduler: Literal["random", "round-robin", "maglev"] | None = None
    proxy_mode: str | None = None
    families: tuple[Family, ...] = (4, 6)
    labels: dict[str, str] = {}
    slice_labels: dict[str, str] = {}
    slices: int = 1
    """EndpointSlices per family over which the endpoints are dealt out."""


class Agents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the agents of a lab are set. Cases of the same setting share a lab."""

    detector: bool = True
    """Whether they know the cluster CIDRs."""
    nodeport_addresses: tuple[str, ...] = ()
    masquerade_all: bool = False

    @property
    def cluster_cidrs(self) -> tuple[str, ...]:
        """Ranges of pods that they know."""
        return CLUSTER_CIDRS if self.detector else ()

    def options(self) -> tuple[str, ...]:
        """Flags of `bpfproxy run` for what is not a field of `node.Agent`."""
        ranges = [word for one in self.nodeport_addresses for word in ("--nodeport-addresses", one)]
        return (*ranges, *(["--masquerade-all"] if self.masquerade_all else []))


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One scenario."""

    name: str
    about: str
    rules: tuple[int, ...]
    """Numbers in the semantics that it is about."""
    service: Service
    clients: tuple[str, ...] = ("pod1c", "node1", "pod2c", "node2")
    outside: tuple[str, ...] = ("client", "client2", "bare1c", "bare2c")
    """Clients that no hook sees, whose packets are translated on the way."""
    via: tuple[Via, ...] = ("ClusterIP", "NodePort", "localhost", "ExternalIP", "LoadBalancer")
    """Kinds of frontends to go by; those that the Service does not have are left out."""
    talks: tuple[Talk, ...] = ("tcp", "udp", "udp-unconnected")
    agents: Agents = Agents()
    expect: dict[str, str] = {}
    """What must come out, written by hand, to check the oracle by: `VIA CLIENT` to the places that answer, `refused`,
    `dropped`, `unreachable` or `untouched`. A bare client stands for every kind of frontend."""
    number: int = 0
    """Place among all cases, from which addresses follow."""

    def vias(self) -> tuple[Via, ...]:
        """Kinds of frontends that the Service has and the case goes by."""
        service = self.service
        has: dict[Via, bool] = {
            "ClusterIP": not service.headless and service.type != "ExternalName",
            "NodePort": service.type in ("NodePort", "LoadBalancer"),
            "localhost": service.type in ("NodePort", "LoadBalancer"),
            "gateway": service.type in ("NodePort", "LoadBalancer"),
            "other-node": service.type in ("NodePort", "LoadBalancer"),
            "ExternalIP": service.external_ips or bool(service.external_ips_of),
            "LoadBalancer": service.type == "LoadBalancer",
        }
        return tuple(via for via in self.via if has[via])

    def node_port(self, port: Port) -> int:
        """The node port of one of the Service's ports."""
        return _FIRST_NODE_PORT + self.number * _PORTS_PER_CASE + self.service.ports.index(port)

    def vip(self, via: Via, family: Family) -> str:
        """The Service's address of a kind."""
        if via == "ExternalIP" and self.service.external_ips_of:
            return SPOTS[self.service.external_ips_of].address(family)
        return str(ip_address(_RANGES[via, family]) + self.number)

    def frontend(self, via: Via, port: Port, client: str, family: Family) -> tuple[str, int]:
        """Address and port to which a client goes."""
        node = PLACES[client].entry
        match via:
            case "localhost":
                return "127.0.0.1" if family == 4 else "::1", self.node_port(port)
            case "NodePort":
                return SPOTS[node].address(family), self.node_port(port)
            case "gateway":
                return NODES[node].gateway(family), self.node_port(port)
            case "other-node":
                return SPOTS[other_node(node)].address(family), self.node_port(port)
        return self.vip(via, family), port.port


class Probe(msgspec.Struct, frozen=True):
    """One kind of traffic of a case: who goes where, how."""

    case: Case
    via: Via
    port: Port
    client: str
    family: Family
    talk: Talk

    @property
    def entry(self) -> str:
        """The node that judges it: the first one by which it comes whose proxier knows its frontend."""
        client = PLACES[self.client]
        if self.via == "other-node":
            return other_node(client.entry)
        if self.via == "ExternalIP" and client.kind == "client":
            return self.case.service.external_ips_of or client.entry
        return client.entry

    def flow(self, timeout: float = 2.0) -> Flow:
        """The flow that a place is to send."""
        mapped = self.talk.endswith("-mapped")
        protocol: Protocol = self.talk.removesuffix("-mapped")  # type: ignore[assignment]
        to = self.case.frontend(self.via, self.port, self.client, self.family)
        return Flow(protocol, to, 6 if mapped else self.family, timeout, told=True)

    def __str__(self) -> str:
        address, port = self.case.frontend(self.via, self.port, self.client, self.family)
        return f"{self.case.name}: {self.talk} from {self.client} to {self.via} {address} port {port}"


def other_node(node: str) -> str:
    """The node that is not this one."""
    [other] = NODES.keys() - {node}
    return other


def probes(case: Case, family: Family) -> Iterator[Probe]:
    """All traffic of a case in one family that hooks see."""
    return _probes(case, family, case.clients)


def outside_probes(case: Case, family: Family) -> Iterator[Probe]:
    """All traffic of a case in one family that no hook sees."""
    return _probes(case, family, case.outside)


def _probes(case: Case, family: Family, clients: tuple[str, ...]) -> Iterator[Probe]:
    for client in clients:
        for via in case.vias():
            # A pod's localhost, or an outside client's, is its own.
            if via == "localhost" and PLACES[client].kind != "node":
                continue
            for port in case.service.ports:
                for talk in case.talks:
                    fits = talk.startswith("udp") == (port.protocol == "UDP")
                    if fits and (family == 4 or not talk.endswith("-mapped")):
                        yield Probe(case, via, port, client, family, talk)


@cache
def load() -> tuple[Case, ...]:
    """All cases. Raises msgspec.ValidationError naming the field that is wrong."""
    found: list[Case] = []
    for path in sorted(DATA.glob("*.yaml")):
        for case in msgspec.yaml.decode(path.read_bytes(), type=list[Case]):
            found.append(msgspec.structs.replace(case, number=len(found)))
    names = [case.name for case in found]
    if len(set(names)) != len(names):
        raise ValueError(f"two cases of one name among {names}")
    return tuple(found)


def case(name: str) -> Case:
    """One case by name; raises KeyError."""
    return {case.name: case for case in load()}[name]
