"""The ipsets: kube-proxy's, and a few of our own for what it does not do (see `chains`)."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from bpfproxy.model.address import Family
from bpfproxy.model.service import Protocol


class SetSpec(Struct, frozen=True):
    """What a set holds, and what for."""

    type: str
    """The kernel's name."""
    comment: str
    """kube-proxy's words, at the rules that use it."""


_IP, _IP_PORT, _PORT = "hash:ip", "hash:ip,port", "bitmap:port"
_IP_PORT_IP, _IP_PORT_NET = "hash:ip,port,ip", "hash:ip,port,net"

LOOP_BACK: Final = "LOOP-BACK"
CLUSTER_IP: Final = "CLUSTER-IP"
EXTERNAL_IP: Final = "EXTERNAL-IP"
EXTERNAL_IP_LOCAL: Final = "EXTERNAL-IP-LOCAL"
LOAD_BALANCER: Final = "LOAD-BALANCER"
LOAD_BALANCER_LOCAL: Final = "LOAD-BALANCER-LOCAL"
LOAD_BALANCER_FW: Final = "LOAD-BALANCER-FW"
LOAD_BALANCER_SOURCE_IP: Final = "LOAD-BALANCER-SOURCE-IP"
LOAD_BALANCER_SOURCE_CIDR: Final = "LOAD-BALANCER-SOURCE-CIDR"
HEALTH_CHECK: Final = "HEALTH-CHECK-NODE-PORT"
IPVS_IPS: Final = "IPVS-IPS"
NODE_IPS: Final = "NODE-IPS"
RETIRED: Final = "RETIRED"
NO_LOCAL: Final = "NO-LOCAL"
NO_LOCAL_EXTERNAL: Final = "NO-LOCAL-EXTERNAL"
NO_LOCAL_NODE_PORT: Final = "NO-LOCAL-NODE-PORT"

_NODE_PORT: Final = {
    Protocol.TCP: ("NODE-PORT-TCP", "NODE-PORT-LOCAL-TCP"),
    Protocol.UDP: ("NODE-PORT-UDP", "NODE-PORT-LOCAL-UDP"),
    Protocol.SCTP: ("NODE-PORT-SCTP-HASH", "NODE-PORT-LOCAL-SCTP-HASH"),
}
"""There is no bitmap of SCTP ports, so these two have an entry for each address of the node."""


def node_port(protocol: Protocol) -> str:
    """The set of all NodePorts of a protocol."""
    return _NODE_PORT[protocol][0]


def node_port_local(protocol: Protocol) -> str:
    """That of those with externalTrafficPolicy Local."""
    return _NODE_PORT[protocol][1]


SETS: Final[dict[str, SetSpec]] = {
    LOOP_BACK: SetSpec(_IP_PORT_IP, "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose"),
    CLUSTER_IP: SetSpec(_IP_PORT, "Kubernetes service cluster ip + port for masquerade purpose"),
    EXTERNAL_IP: SetSpec(_IP_PORT, "Kubernetes service external ip + port for masquerade and filter purpose"),
    EXTERNAL_IP_LOCAL: SetSpec(_IP_PORT, "Kubernetes service external ip + port with externalTrafficPolicy=local"),
    LOAD_BALANCER: SetSpec(_IP_PORT, "Kubernetes service lb portal"),
    LOAD_BALANCER_LOCAL: SetSpec(
        _IP_PORT, "Kubernetes service load balancer ip + port with externalTrafficPolicy=local"
    ),
    LOAD_BALANCER_FW: SetSpec(
        _IP_PORT, "Kubernetes service load balancer ip + port for load balancer with sourceRange"
    ),
    LOAD_BALANCER_SOURCE_IP: SetSpec(
        _IP_PORT_IP, "Kubernetes service load balancer ip + port + source IP for packet filter purpose"
    ),
    LOAD_BALANCER_SOURCE_CIDR: SetSpec(
        _IP_PORT_NET, "Kubernetes service load balancer ip + port + source cidr for packet filter purpose"
    ),
    node_port(Protocol.TCP): SetSpec(_PORT, "Kubernetes nodeport TCP port for masquerade purpose"),
    node_port_local(Protocol.TCP): SetSpec(_PORT, "Kubernetes nodeport TCP port with externalTrafficPolicy=local"),
    node_port(Protocol.UDP): SetSpec(_PORT, "Kubernetes nodeport UDP port for masquerade purpose"),
    node_port_local(Protocol.UDP): SetSpec(_PORT, "Kubernetes nodeport UDP port with externalTrafficPolicy=local"),
    node_port(Protocol.SCTP): SetSpec(
        _IP_PORT, "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'"
    ),
    node_port_local(Protocol.SCTP): SetSpec(
        _IP_PORT, "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'"
    ),
    HEALTH_CHECK: SetSpec(_PORT, "Kubernetes health check node port"),
    IPVS_IPS: SetSpec(_IP, "All virtual IPs of IPVS services"),
    # Ours:
    NODE_IPS: SetSpec(_IP, "Node addresses on which NodePorts answer"),
    RETIRED: SetSpec(_IP_PORT, "Virtual servers that are gone but for their connections"),
    NO_LOCAL: SetSpec(_IP_PORT, "Services without local endpoints under internalTrafficPolicy=local"),
    NO_LOCAL_EXTERNAL: SetSpec(_IP_PORT, "Services without local endpoints under externalTrafficPolicy=local"),
    NO_LOCAL_NODE_PORT: SetSpec(_IP_PORT, "NodePorts without local endpoints under externalTrafficPolicy=local"),
}
"""By name, without the prefix; each exists once per family."""

CLAIMS: Final = (CLUSTER_IP, EXTERNAL_IP, EXTERNAL_IP_LOCAL, LOAD_BALANCER, RETIRED)
"""Every virtual server at a VIP is in one of these, those at addresses of the node in `node_port`. The kernel's virtual
servers bear no mark of their owner: by these it is known which of them are ours."""

_PREFIX: Final[dict[Family, str]] = {4: "KUBE-", 6: "KUBE-6-"}
_LONGEST: Final = 31
"""Names of ipsets; kube-proxy cuts them off like this."""


def full_name(family: Family, name: str) -> str:
    """As in the kernel: `KUBE-6-CLUSTER-IP`."""
    return (_PREFIX[family] + name)[:_LONGEST]
