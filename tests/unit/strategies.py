"""Small worlds for property tests: few names and addresses, so that things meet, clash and come back."""

from __future__ import annotations

import ipaddress
from typing import TypeVar

from hypothesis import strategies as st

from bpfproxy.model.address import Address, Family, Network, parse_address
from bpfproxy.model.service import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectName,
    Protocol,
    Scheduler,
    Service,
    ServicePort,
)
from bpfproxy.plan import NodeConfig

T = TypeVar("T")
SELDOM = st.sampled_from([False] * 19 + [True])

SERVICES = [ObjectName("ns1", "a"), ObjectName("ns1", "b"), ObjectName("ns2", "a")]
SLICES = [ObjectName("ns1", f"slice-{n}") for n in range(5)]
MODES = ["one", "two"]

CLUSTER_IPS: dict[Family, list[Address]] = {
    4: [parse_address(f"172.30.0.{n}") for n in (1, 2, 3)],
    6: [parse_address(f"fd30::{n}") for n in (1, 2, 3)],
}
EXTERNAL_IPS = [parse_address(text) for text in ("192.0.2.1", "192.0.2.2", "2001:db8::1")]
LOAD_BALANCER_IPS = [parse_address(text) for text in ("198.51.100.1", "2001:db8:1::1")]
PODS: dict[Family, list[Address]] = {
    4: [parse_address(f"10.0.0.{n}") for n in range(1, 6)],
    6: [parse_address(f"fd00::{n}") for n in range(1, 6)],
}
RANGES: list[Network] = [ipaddress.ip_network("203.0.113.0/24"), ipaddress.ip_network("2001:db8:2::/48")]
CIDRS: list[Network] = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/16")]

ANY_SERVICE = st.sampled_from(SERVICES)
ANY_SLICE = st.sampled_from(SLICES)
NO_MODE: st.SearchStrategy[str | None] = st.none()
FAMILIES: st.SearchStrategy[tuple[Family, ...]] = st.sampled_from([(4,), (4,), (4, 6), (6, 4), (6,), (4,), (4, 6), ()])
PORTS = st.sampled_from(
    [("http", Protocol.TCP), ("http", Protocol.TCP), ("", Protocol.TCP), ("http", Protocol.UDP), ("dns", Protocol.SCTP)]
)
"""Few, so that the ports of Services and slices often match."""


def some(values: list[T], most: int = 2) -> st.SearchStrategy[tuple[T, ...]]:
    """Up to `most` of `values`, each once."""
    return st.lists(st.sampled_from(values), max_size=most, unique=True).map(tuple)


def mostly(usual: bool) -> st.SearchStrategy[bool]:
    """`usual` three times in four."""
    return st.sampled_from([usual, usual, usual, not usual])


# (ready, serving, terminating)
CONDITIONS = [
    (True, True, False),
    (False, True, True),
    (False, False, True),
    (False, False, False),
    (False, True, False),
    (True, False, False),
    (True, True, True),
]
CONDITION_MIXES = st.sampled_from([CONDITIONS[:1], CONDITIONS[:2], CONDITIONS[1:2], CONDITIONS[1:5], CONDITIONS])
ZONE_HINTS: list[tuple[str, ...]] = [("east",), ("west",), ("east", "west"), ()]
NODE_HINTS: list[tuple[str, ...]] = [("n1",), ("n2",), ("n1", "n2"), ()]
HINT_MIXES = st.sampled_from([slice(3, 4), slice(3, 4), slice(3), slice(1, 2), slice(4)])


def _endpoint(
    address: Address, condition: tuple[bool, bool, bool], where: str, zones: tuple[str, ...], nodes: tuple[str, ...]
) -> Endpoint:
    ready, serving, terminating = condition
    return Endpoint(address, ready, serving, terminating, where, zones, nodes)


@st.composite
def endpoints(draw: st.DrawFn, family: Family) -> list[Endpoint]:
    """The members of a slice: mostly alike in condition and hints, seldom of the wrong family, sometimes twins."""
    if draw(st.booleans()):  # what most clusters have
        conditions, zone_hints, node_hints = CONDITIONS[:1], ZONE_HINTS[3:], NODE_HINTS[3:]
    else:
        conditions = draw(CONDITION_MIXES)
        zone_hints, node_hints = ZONE_HINTS[draw(HINT_MIXES)], NODE_HINTS[draw(HINT_MIXES)]
    where = draw(st.sampled_from([["n1", "n2"], ["n1"], ["n2"], ["n1", "n2", ""]]))
    wrong: Family = 6 if family == 4 else 4
    pods = PODS[family] if draw(st.integers(0, 5)) else [*PODS[family], PODS[wrong][0]]
    size = draw(st.sampled_from([3, 1, 2, 2, 0, 3, 4, 5]))
    return draw(
        st.lists(
            st.builds(
                _endpoint,
                st.sampled_from(pods),
                st.sampled_from(conditions),
                st.sampled_from(where),
                st.sampled_from(zone_hints),
                st.sampled_from(node_hints),
            ),
            min_size=size,
            max_size=size,
        )
    )


def _endpoint_port(port: tuple[str, Protocol], number: int) -> EndpointPort:
    return EndpointPort(*port, number)


def _service_port(port: tuple[str, Protocol], number: int, node_port: int) -> ServicePort:
    return ServicePort(*port, number, node_port)


@st.composite
def slices(
    draw: st.DrawFn,
    names: st.SearchStrategy[ObjectName] = ANY_SLICE,
    services: st.SearchStrategy[ObjectName] = ANY_SERVICE,
) -> EndpointSlice:
    family: Family = draw(st.sampled_from([4, 4, 4, 6]))
    ports = st.builds(_endpoint_port, PORTS, st.sampled_from([8080, 9090]))
    size = draw(st.sampled_from([3, 4, 3, 2, 1, 0]))
    return EndpointSlice(
        draw(names),
        draw(services),
        family,
        tuple(draw(st.lists(ports, min_size=size, max_size=size, unique_by=lambda p: (p.name, p.protocol)))),
        tuple(draw(endpoints(family))),
        ignored=draw(SELDOM),
    )


@st.composite
def slice_lists(draw: st.DrawFn, service: ObjectName) -> list[EndpointSlice]:
    """The slices of one Service, sorted by name."""
    names = SLICES[: draw(st.sampled_from([2, 1, 1, 2, 3, 0]))]
    return [draw(slices(st.just(name), st.just(service))) for name in names]


@st.composite
def services(
    draw: st.DrawFn,
    names: st.SearchStrategy[ObjectName] = ANY_SERVICE,
    modes: st.SearchStrategy[str | None] = NO_MODE,
) -> Service:
    ports = st.builds(_service_port, PORTS, st.sampled_from([53, 80]), st.sampled_from([0, 0, 30000, 30001]))
    size = draw(st.sampled_from([1, 1, 2, 1, 2, 3, 1, 2, 0]))
    different = (lambda port: (port.name, port.protocol), lambda port: (port.port, port.protocol))
    return Service(
        draw(names),
        tuple(draw(st.lists(ports, min_size=size, max_size=size, unique_by=different))),
        type=draw(st.sampled_from(["ClusterIP", "NodePort", *["LoadBalancer"] * 8, "ExternalName"])),
        cluster_ips=tuple(draw(st.sampled_from(CLUSTER_IPS[family])) for family in draw(FAMILIES)),
        headless=draw(SELDOM),
        external_ips=draw(some(EXTERNAL_IPS)),
        load_balancer_ips=draw(some(LOAD_BALANCER_IPS)),
        source_ranges=draw(some(RANGES)),
        external_local=draw(st.booleans()),
        internal_local=draw(mostly(False)),
        affinity_timeout=draw(st.sampled_from([0, 10800])),
        health_check_node_port=draw(st.sampled_from([0, 32000])),
        ignored=draw(SELDOM),
        scheduler=draw(st.sampled_from([None, Scheduler.MAGLEV])),
        proxy_mode=draw(modes),
    )


@st.composite
def nodes(draw: st.DrawFn) -> NodeConfig:
    """Any configuration of the node n1."""
    return NodeConfig(
        "n1",
        zone=draw(st.sampled_from(["east", "west", ""])),
        cluster_cidrs=draw(some(CIDRS)),
        masquerade_all=draw(st.booleans()),
        node_port_ranges=draw(st.sampled_from([(), ("primary",)])),
        addresses=frozenset(draw(some([*PODS[4], *PODS[6]], 3))),
        primary=draw(some(PODS[4], 1)),
    )
