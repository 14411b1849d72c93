"""Rows of the table that belong to no Service: what hooks into the kernel, dispatches, rejects and masquerades."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from bpfproxy.model.address import Family
from bpfproxy.proxiers.nftables import names
from bpfproxy.proxiers.nftables.names import FAMILIES
from bpfproxy.proxiers.nftables.rows import ChainKey, ChainRow, ElementKey, ElementRow, Hook, Key, Row, SetKey, SetRow

ADDRESS_TYPES: Final[dict[Family, str]] = {4: "ipv4_addr", 6: "ipv6_addr"}

MARK: Final = 0x4000
"""Bit 14 of a packet's mark: masquerade it."""

TABLE_COMMENT: Final = "rules for kube-proxy"
CHAIN_COMMENTS: Final = {names.REJECT: "helper for @no-endpoint-services / @no-endpoint-nodeports"}
"""nft does not list them in JSON, so they are in no row."""

_DSTNAT: Final = -100
_FILTER: Final = 0
_SRCNAT: Final = 100
_PORTS: Final = (1024, 65535)


def render(
    family: Family, node_port_ips: Iterable[str], service_ranges: Sequence[str], snat_ports: tuple[int, int]
) -> dict[Key, Row]:
    """`service_ranges`: where ClusterIPs are; `snat_ports`: what masquerading leaves alone."""
    rows: dict[Key, Row] = {SetKey(family, name): row for name, row in _sets(ADDRESS_TYPES[family]).items()}
    rows |= {ElementKey(family, names.NODE_PORT_IPS, address): ElementRow() for address in node_port_ips}
    chains = _base_chains() | _dispatch_chains(FAMILIES[family]) | _masquerade_chains(snat_ports)
    chains[names.CLUSTER_IPS_CHECK] = ChainRow(_cluster_ips_check(FAMILIES[family], service_ranges))
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
    """Source ranges are judged before, a lack of endpoints after the destination was translated."""
    new = "ct state new jump"
    firewall = (f"{new} {names.FIREWALL_CHECK}",)
    services = f"{new} {names.SERVICE_ENDPOINTS_CHECK}"
    node_ports = f"{new} {names.NODE_PORT_ENDPOINTS_CHECK}"
    cluster_ips = f"{new} {names.CLUSTER_IPS_CHECK}"
    dispatch = (f"jump {names.SERVICES}",)
    return {
        "filter-prerouting-pre-dnat": ChainRow(firewall, Hook("filter", "prerouting", _DSTNAT - 10)),
        "filter-output-pre-dnat": ChainRow(firewall, Hook("filter", "output", _DSTNAT - 10)),
        "filter-input": ChainRow((node_ports, services), Hook("filter", "input", _FILTER)),
        "filter-forward": ChainRow((services, cluster_ips), Hook("filter", "forward", _FILTER)),
        "filter-output": ChainRow((services, cluster_ips), Hook("filter", "output", _FILTER)),
        "nat-prerouting": ChainRow(dispatch, Hook("nat", "prerouting", _DSTNAT)),
        "nat-output": ChainRow(dispatch, Hook("nat", "output", _DSTNAT)),
        "nat-postrouting": ChainRow((f"jump {names.MASQUERADING}",), Hook("nat", "postrouting", _SRCNAT)),
    }


def _dispatch_chains(ip: str) -> dict[str, ChainRow]:
    def by_address(verdicts: str) -> str:
        return f"{ip} daddr . meta l4proto . th dport vmap @{verdicts}"

    def by_node_port(verdicts: str) -> str:
        return f"{ip} daddr @{names.NODE_PORT_IPS} meta l4proto . th dport vmap @{verdicts}"

    return {
        names.SERVICES: ChainRow((by_address(names.SERVICE_IPS), by_node_port(names.SERVICE_NODE_PORTS))),
        names.SERVICE_ENDPOINTS_CHECK: ChainRow((by_address(names.NO_ENDPOINT_SERVICES),)),
        names.NODE_PORT_ENDPOINTS_CHECK: ChainRow((by_node_port(names.NO_ENDPOINT_NODE_PORTS),)),
        names.FIREWALL_CHECK: ChainRow((by_address(names.FIREWALL_IPS),)),
    }


def _masquerade_chains(snat_ports: tuple[int, int]) -> dict[str, ChainRow]:
    first, last = _free_ports(snat_ports)
    masquerade = ["masquerade fully-random"]
    if first <= last:
        masquerade.insert(0, f"meta l4proto {{ tcp, udp, sctp }} masquerade to :{first}-{last} fully-random")
    return {
        names.MARK_MASQUERADE: ChainRow((f"mark set mark or {MARK:#x}",)),
        names.MASQUERADING: ChainRow((f"mark and {MARK:#x} == 0 return", f"mark set mark xor {MARK:#x}", *masquerade)),
    }


def _free_ports(taken: tuple[int, int]) -> tuple[int, int]:
    """The larger part of the unprivileged ports that lies beside `taken`; empty if there is none."""
    below, above = (_PORTS[0], taken[0] - 1), (taken[1] + 1, _PORTS[1])
    return max(below, above, key=lambda ports: ports[1] - ports[0])


def _cluster_ips_check(ip: str, service_ranges: Sequence[str]) -> tuple[str, ...]:
    """What the dispatch has not translated."""
    rules = [
        f'{ip} daddr @{names.CLUSTER_IPS} reject comment "Reject traffic to invalid ports of ClusterIPs"',
    ]
    if service_ranges:
        ranges = service_ranges[0] if len(service_ranges) == 1 else f"{{ {', '.join(service_ranges)} }}"
        rules.append(f'{ip} daddr {ranges} drop comment "Drop traffic to unallocated ClusterIPs"')
    return tuple(rules)
