"""Rows of the table that belong to no Service: what hooks into the kernel, dispatches, rejects and masquerades."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from bpfproxy.model.address import Family
from bpfproxy.proxiers.nftables import names
from bpfproxy.proxiers.nftables.names import FAMILIES
from bpfproxy.proxiers.nftables.rows import ChainKey, ChainRow, ElementKey, ElementRow, Hook, Key, Row, SetKey, SetRow

ADDRESS_TYPES: Final[dict[Family, str]] = {4: "ipv4_addr", 6: "ipv6_addr"}

TABLE_COMMENT: Final = "rules for kube-proxy"
CHAIN_COMMENTS: Final = {names.REJECT: "helper for @no-endpoint-services / @no-endpoint-nodeports"}
"""nft does not list them in JSON, so they are in no row."""

_LOOPBACK: Final = {"ip": "127.0.0.0/8", "ip6": "::1"}
_DSTNAT: Final = -100
_SRCNAT: Final = 100


class Masquerading(Struct, frozen=True):
    """How a source is translated."""

    mark: int
    """Bit of a packet's mark that asks for it."""
    first: int
    """Of the ports to use."""
    last: int


def render(
    family: Family, node_port_ips: Iterable[str] | None, service_ranges: Sequence[str], masquerading: Masquerading
) -> dict[Key, Row]:
    """`node_port_ips`: where NodePorts answer (None: everywhere); `service_ranges`: where ClusterIPs are."""
    ip, everywhere = FAMILIES[family], node_port_ips is None
    rows: dict[Key, Row] = {SetKey(family, name): row for name, row in _sets(ADDRESS_TYPES[family]).items()}
    if everywhere:
        del rows[SetKey(family, names.NODE_PORT_IPS)]
    rows |= {ElementKey(family, names.NODE_PORT_IPS, address): ElementRow() for address in node_port_ips or ()}
    chains = _base_chains() | _dispatch_chains(ip, everywhere=everywhere) | _masquerade_chains(masquerading)
    chains[names.CLUSTER_IPS_CHECK] = ChainRow(_cluster_ips_check(ip, service_ranges))
    chains[names.REJECT] = ChainRow(("reject",))
    return rows | {ChainKey(family, name): row for name, row in chains.items()}


def _sets(address: str) -> dict[str, SetRow]:
    port = "inet_proto . inet_service"
    return {
        names.CLUSTER_IPS: SetRow(address, comment="Active ClusterIPs"),
        names.NODE_PORT_IPS: SetRow(address, comment="IPs that accept NodePort traffic"),
        names.SERVICE_IPS: SetRow(
            f"{address} . {port}", verdicts=True, comment="ClusterIP, ExternalIP and LoadBalancer IP traffic"
        ),
        names.SERVICE_NODE_PORTS: SetRow(port, verdicts=True, comment="NodePort traffic"),
        names.NO_ENDPOINT_SERVICES: SetRow(
            f"{address} . {port}",
            verdicts=True,
            comment="vmap to drop or reject packets to services with no endpoints",
        ),
        names.NO_ENDPOINT_NODE_PORTS: SetRow(
            port, verdicts=True, comment="vmap to drop or reject packets to service nodeports with no endpoints"
        ),
        names.FIREWALL_IPS: SetRow(
            f"{address} . {port}",
            verdicts=True,
            comment="destinations that are subject to LoadBalancerSourceRanges",
        ),
    }


def _base_chains() -> dict[str, ChainRow]:
    """Named and ordered as kube-proxy's from 1.33 on. But what the node sends is refused for want of endpoints once
    the destination was translated: it may have some where outside clients have none (rule 9)."""
    new = "ct state new jump"
    firewall = f"{new} {names.FIREWALL_CHECK}"
    services = f"{new} {names.SERVICE_ENDPOINTS_CHECK}"
    node_ports = f"{new} {names.NODE_PORT_ENDPOINTS_CHECK}"
    cluster_ips = f"{new} {names.CLUSTER_IPS_CHECK}"
    dispatch = (f"jump {names.SERVICES}",)
    return {
        "filter-prerouting": ChainRow((firewall,), Hook("filter", "prerouting", _DSTNAT - 10)),
        "filter-input": ChainRow((node_ports, services), Hook("filter", "input", _DSTNAT - 10)),
        "filter-forward": ChainRow((services, cluster_ips), Hook("filter", "forward", _DSTNAT - 10)),
        "filter-output": ChainRow((firewall,), Hook("filter", "output", _DSTNAT - 10)),
        "filter-output-post-dnat": ChainRow((services, cluster_ips), Hook("filter", "output", _DSTNAT + 10)),
        "nat-prerouting": ChainRow(dispatch, Hook("nat", "prerouting", _DSTNAT)),
        "nat-output": ChainRow(dispatch, Hook("nat", "output", _DSTNAT)),
        "nat-postrouting": ChainRow((f"jump {names.MASQUERADING}",), Hook("nat", "postrouting", _SRCNAT)),
    }


def _dispatch_chains(ip: str, *, everywhere: bool) -> dict[str, ChainRow]:
    port = "meta l4proto . th dport vmap"
    mine = f"{ip} daddr != {_LOOPBACK[ip]}" if everywhere else f"{ip} daddr @{names.NODE_PORT_IPS}"
    local = "fib daddr type local " if everywhere else ""

    def by_address(verdicts: str) -> str:
        return f"{ip} daddr . {port} @{verdicts}"

    services = (by_address(names.SERVICE_IPS), f"{local}{mine} {port} @{names.SERVICE_NODE_PORTS}")
    return {
        names.SERVICES: ChainRow(services),
        names.SERVICE_ENDPOINTS_CHECK: ChainRow((by_address(names.NO_ENDPOINT_SERVICES),)),
        names.NODE_PORT_ENDPOINTS_CHECK: ChainRow((f"{mine} {port} @{names.NO_ENDPOINT_NODE_PORTS}",)),
        names.FIREWALL_CHECK: ChainRow((by_address(names.FIREWALL_IPS),)),
    }


def _masquerade_chains(how: Masquerading) -> dict[str, ChainRow]:
    ports = f"{how.first}-{how.last}" if how.first < how.last else str(how.first)
    masquerading = (
        f"mark and {how.mark:#x} == 0 return",
        f"mark set mark xor {how.mark:#x}",
        f"meta l4proto {{ tcp, udp, sctp }} masquerade to :{ports} fully-random",
        "masquerade fully-random",
    )
    return {
        names.MARK_MASQUERADE: ChainRow((f"mark set mark or {how.mark:#x}",)),
        names.MASQUERADING: ChainRow(masquerading),
    }


def _cluster_ips_check(ip: str, service_ranges: Sequence[str]) -> tuple[str, ...]:
    """What the dispatch has not translated."""
    rules = [
        f'{ip} daddr @{names.CLUSTER_IPS} reject comment "Reject traffic to invalid ports of ClusterIPs"',
    ]
    if service_ranges:
        ranges = service_ranges[0] if len(service_ranges) == 1 else f"{{ {', '.join(service_ranges)} }}"
        rules.append(f'{ip} daddr {ranges} drop comment "Drop traffic to unallocated ClusterIPs"')
    return tuple(rules)
