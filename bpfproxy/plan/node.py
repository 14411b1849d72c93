"""The node's own part: what the planner must know of it, and on which addresses its NodePorts answer."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final, Literal

from msgspec import Struct

from bpfproxy.config import Settings
from bpfproxy.errors import InputError
from bpfproxy.model.address import Address, Family, Network, contains, family_of
from bpfproxy.model.device import DevicePlan, DeviceRole, NetworkState
from bpfproxy.model.frontend import NodePlan
from bpfproxy.model.service import Node
from bpfproxy.plan.devices import DevicePolicy, device_policy, plan_devices

Selector = Network | Literal["primary"]
"""A range of node addresses, or the primary ones."""

_FAMILIES: Final[tuple[Family, ...]] = (4, 6)
_LOOPBACK: Final[dict[Family, Network]] = {
    4: ipaddress.IPv4Network("127.0.0.0/8"),
    6: ipaddress.IPv6Network("::1/128"),
}


class NodeConfig(Struct, frozen=True):
    """All that the plan depends on besides the objects."""

    name: str = ""
    """As in the endpoints' nodeName."""
    zone: str = ""
    cluster_cidrs: tuple[Network, ...] = ()
    """The local detector: a source in one of these is a pod. A family without a range has no detector."""
    masquerade_all: bool = False
    node_port_ranges: tuple[Selector, ...] = ()
    """Where NodePorts answer; empty: on all addresses."""
    addresses: frozenset[Address] = frozenset()
    """On the node's interfaces."""
    primary: tuple[Address, ...] = ()
    """The Node object's first InternalIP of each family."""
    state: NetworkState = NetworkState()
    """The node's devices."""
    devices: DevicePolicy = DevicePolicy()
    """Which of them take part."""

    def detects_local(self, family: Family) -> bool:
        """Whether pods can be told from other clients in `family`."""
        for network in self.cluster_cidrs:  # noqa: SIM110 - on the hot path; a generator costs twice as much
            if network.version == family:
                return True
        return False

    def plans_services_like(self, other: NodeConfig) -> bool:
        """Whether every Service's plan is the same under both."""
        return (self.name, self.zone, self.cluster_cidrs, self.masquerade_all, self.primary) == (
            other.name,
            other.zone,
            other.cluster_cidrs,
            other.masquerade_all,
            other.primary,
        )


def plan_node(config: NodeConfig) -> NodePlan:
    """On which addresses NodePorts answer (rule 14), and what is done on which device."""
    addresses, localhost = _node_port_addresses(config)
    devices = plan_devices(config.devices, config.state.network)
    return NodePlan(
        node_port_addresses=addresses,
        localhost_node_ports=localhost,
        node_ports_everywhere=tuple(family for family in _FAMILIES if _everywhere(config.node_port_ranges, family)),
        cluster_networks=config.cluster_cidrs,
        sources=_sources(config, devices),
        devices=devices,
        route_generation=config.state.route_generation,
    )


def _everywhere(selectors: tuple[Selector, ...], family: Family) -> bool:
    ranges = (selector for selector in selectors if selector != "primary")
    return not selectors or any(one.version == family and one.prefixlen == 0 for one in ranges)


def _sources(config: NodeConfig, devices: Iterable[DevicePlan]) -> tuple[Address, ...]:
    """The Node object's addresses, as far as they are here, else those of the first uplink that has any."""
    here = (address for address in config.primary if address in config.addresses)
    uplinks = (address for device in devices if device.role is DeviceRole.UPLINK for address in device.sources)
    return _first_of_each_family([*here, *uplinks])


def _node_port_addresses(config: NodeConfig) -> tuple[frozenset[Address], tuple[Family, ...]]:
    selectors = config.node_port_ranges
    if not selectors:
        return _without_loopback(config.addresses), _FAMILIES
    networks = tuple(selector for selector in selectors if selector != "primary")
    chosen = {address for address in config.addresses if contains(networks, address)}
    if "primary" in selectors:
        chosen.update(config.primary)
    localhost = tuple(family for family in _FAMILIES if _reach_loopback(networks, family))
    return _without_loopback(chosen), localhost


def _without_loopback(addresses: Iterable[Address]) -> frozenset[Address]:
    return frozenset(a for a in addresses if not contains((_LOOPBACK[family_of(a)],), a))


def _reach_loopback(networks: tuple[Network, ...], family: Family) -> bool:
    return any(network.version == family and network.overlaps(_LOOPBACK[family]) for network in networks)


def node_config(
    settings: Settings,
    name: str,
    addresses: Iterable[Address],
    node: Node | None = None,
    state: NetworkState | None = None,
) -> NodeConfig:
    """The configuration of the node `name` with `addresses` on its interfaces, as far as its Node object is known.
    Without a `state` of its network no device takes part.

    Raises InputError on a bad setting.
    """
    return NodeConfig(
        name=name,
        zone=node.zone if node else "",
        cluster_cidrs=parse_cluster_cidrs(settings.cluster_cidr),
        masquerade_all=settings.masquerade_all,
        node_port_ranges=parse_node_port_addresses(settings.nodeport_addresses),
        addresses=frozenset(addresses),
        primary=_first_of_each_family(node.addresses if node else ()),
        state=state or NetworkState(),
        devices=device_policy(settings),
    )


def _first_of_each_family(addresses: Iterable[Address]) -> tuple[Address, ...]:
    first: dict[Family, Address] = {}
    for address in addresses:
        first.setdefault(family_of(address), address)
    return tuple(first.values())


def parse_cluster_cidrs(texts: Iterable[str]) -> tuple[Network, ...]:
    """The setting `cluster_cidr`; each text may hold several ranges with commas between. Raises InputError."""
    networks = tuple(_parse_range(text, "cluster CIDR") for text in _parts(texts))
    for family in _FAMILIES:
        if len(same := [network for network in networks if network.version == family]) > 1:
            raise InputError(f"cluster CIDR: expected at most one range of IPv{family}, not {same[0]} and {same[1]}")
    return networks


def parse_node_port_addresses(texts: Iterable[str]) -> tuple[Selector, ...]:
    """The setting `nodeport_addresses`; each text may hold several entries with commas between. Raises InputError."""
    return tuple(
        "primary" if text == "primary" else _parse_range(text, "NodePort addresses", "or 'primary'")
        for text in _parts(texts)
    )


def _parts(texts: Iterable[str]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",")]


def _parse_range(text: str, setting: str, alternative: str = "") -> Network:
    expected = f"expected a range such as 10.0.0.0/8 or fd00::/64{' ' + alternative if alternative else ''}"
    if "/" not in text:
        raise InputError(f"{setting}: {expected}, not {text!r}")
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InputError(f"{setting}: {expected}, not {text!r}") from error
