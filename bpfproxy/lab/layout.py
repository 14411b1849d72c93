"""Where everything in a lab is. Addresses are fixed, so that manifests can be written by hand; each lab has its own
network namespaces, so any number of labs can stand side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["client", "node", "pod"]
Family = Literal[4, 6]

CLUSTER_CIDRS = ("10.244.0.0/16", "fd00:10:244::/48")
"""All pods, one range per family."""

SERVICE_RANGES = ("10.96.0.0/16", "198.18.0.0/15", "fd00:10:96::/64", "fd00:198:18::/64", "fd00:198:19::/64")
"""ClusterIPs, ExternalIPs and LoadBalancer IPs: each client has routes for them that lead to its gateway."""

SERVED_PORTS = (8080, 8081)
"""Ports on which the servers of all pods and nodes listen, TCP (HTTP too) and UDP."""


@dataclass(frozen=True)
class Spot:
    """One place of the lab: a network namespace and a cgroup."""

    name: str
    kind: Kind
    v4: str
    v6: str
    node: str = ""
    """The node that it belongs to; a node belongs to itself, a client to none."""
    gateway: str = ""
    """The node by which a client outside the cluster goes to the addresses of Services."""
    home: str = ""
    """The spot whose network namespace it shares; empty: it has one of its own."""

    @property
    def entry(self) -> str:
        """The node that judges its traffic to Services."""
        return self.node or self.gateway

    def address(self, family: Family) -> str:
        """Its own address."""
        return self.v4 if family == 4 else self.v6


@dataclass(frozen=True)
class NodeNet:
    """A node's pod network. The gateway address stands on the node's end of every pod's veth."""

    name: str
    zone: str
    pods4: str
    pods6: str
    gateway4: str
    gateway6: str

    def gateway(self, family: Family) -> str:
        """The address of the node's end of every pod's veth."""
        return self.gateway4 if family == 4 else self.gateway6


NODES = {
    "node1": NodeNet("node1", "zone-a", "10.244.1.0/24", "fd00:10:244:1::/64", "10.244.1.1", "fd00:10:244:1::1"),
    "node2": NodeNet("node2", "zone-b", "10.244.2.0/24", "fd00:10:244:2::/64", "10.244.2.1", "fd00:10:244:2::1"),
}

SPOTS = {
    spot.name: spot
    for spot in (
        Spot("client", "client", "172.18.0.2", "fd00:172:18::2", gateway="node1"),
        Spot("client2", "client", "172.18.0.3", "fd00:172:18::3", gateway="node2"),
        Spot("node1", "node", "172.18.0.11", "fd00:172:18::11", "node1"),
        Spot("node2", "node", "172.18.0.12", "fd00:172:18::12", "node2"),
        Spot("pod1a", "pod", "10.244.1.2", "fd00:10:244:1::2", "node1"),
        Spot("pod1b", "pod", "10.244.1.3", "fd00:10:244:1::3", "node1"),
        Spot("pod1c", "pod", "10.244.1.4", "fd00:10:244:1::4", "node1"),
        Spot("pod2a", "pod", "10.244.2.2", "fd00:10:244:2::2", "node2"),
        Spot("pod2b", "pod", "10.244.2.3", "fd00:10:244:2::3", "node2"),
        Spot("pod2c", "pod", "10.244.2.4", "fd00:10:244:2::4", "node2"),
    )
}

UNHOOKED = {
    f"bare{pod.removeprefix('pod')}": replace(SPOTS[pod], name=f"bare{pod.removeprefix('pod')}", home=pod)
    for pod in ("pod1a", "pod1c", "pod2c")
}
"""Processes in pods that no hook of a cgroup sees, as those of a virtual machine. They serve nothing."""

PLACES = SPOTS | UNHOOKED

UPLINK_PREFIX = {4: 24, 6: 64}
"""Prefix lengths of the network that joins the clients and the nodes."""
