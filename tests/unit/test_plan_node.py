"""Rule 14 and the settings that it needs."""

from __future__ import annotations

import ipaddress

import pytest
from msgspec.structs import replace

from bpfproxy.config import Settings
from bpfproxy.errors import InputError
from bpfproxy.model.address import Address, format_address, parse_address
from bpfproxy.model.service import Node
from bpfproxy.plan import NodeConfig, node_config, plan_node
from bpfproxy.plan.node import parse_cluster_cidrs, parse_node_port_addresses

ADDRESSES = frozenset(
    parse_address(text) for text in ("127.0.0.1", "::1", "192.0.2.10", "198.51.100.10", "2001:db8::10", "fe80::1")
)


def answering(*entries: str, primary: tuple[str, ...] = ("192.0.2.10", "2001:db8::10")) -> tuple[set[str], list[int]]:
    config = NodeConfig(
        "n1",
        addresses=ADDRESSES,
        node_port_ranges=parse_node_port_addresses(entries),
        primary=tuple(parse_address(text) for text in primary),
    )
    plan = plan_node(config)
    return {format_address(address) for address in plan.node_port_addresses}, list(plan.localhost_node_ports)


@pytest.mark.parametrize(
    ("entries", "addresses", "localhost"),
    [
        ([], {"192.0.2.10", "198.51.100.10", "2001:db8::10", "fe80::1"}, [4, 6]),
        (["primary"], {"192.0.2.10", "2001:db8::10"}, []),
        (["192.0.2.0/24"], {"192.0.2.10"}, []),
        (["192.0.2.0/24", "2001:db8::/32"], {"192.0.2.10", "2001:db8::10"}, []),
        (["192.0.2.0/24,2001:db8::/32"], {"192.0.2.10", "2001:db8::10"}, []),
        (["0.0.0.0/0"], {"192.0.2.10", "198.51.100.10"}, [4]),
        (["::/0"], {"2001:db8::10", "fe80::1"}, [6]),
        (["127.0.0.0/8"], set(), [4]),
        (["127.0.0.1/32"], set(), [4]),
        (["::1/128"], set(), [6]),
        (["primary", "198.51.100.0/24", "127.0.0.0/8"], {"192.0.2.10", "198.51.100.10", "2001:db8::10"}, [4]),
        (["203.0.113.0/24"], set(), []),
    ],
)
def test_node_ports_answer_on(entries: list[str], addresses: set[str], localhost: list[int]) -> None:
    assert answering(*entries) == (addresses, localhost)


@pytest.mark.parametrize(
    ("entries", "families"),
    [
        ([], (4, 6)),
        (["primary"], ()),
        (["192.0.2.0/24"], ()),
        (["0.0.0.0/0"], (4,)),
        (["primary", "::/0"], (6,)),
        (["0.0.0.0/0", "::/0"], (4, 6)),
        (["0.0.0.0/1", "128.0.0.0/1"], ()),
    ],
)
def test_node_ports_answer_everywhere(entries: list[str], families: tuple[int, ...]) -> None:
    config = NodeConfig("n1", addresses=ADDRESSES, node_port_ranges=parse_node_port_addresses(entries))
    assert plan_node(config).node_ports_everywhere == families


def test_primary_is_nothing_until_the_node_object_is_known() -> None:
    assert answering("primary", primary=()) == (set(), [])


def test_a_single_stack_node_has_one_primary_address() -> None:
    assert answering("primary", primary=("192.0.2.10",)) == ({"192.0.2.10"}, [])


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.0/33", "all", "", "primary/24", "10.0.0.0/8,", "fd00::/129"])
def test_bad_node_port_addresses(text: str) -> None:
    with pytest.raises(InputError, match=r"NodePort addresses: expected a range such as .* or 'primary', not "):
        parse_node_port_addresses([text])


@pytest.mark.parametrize("text", ["10.0.0.1", "primary", "10.0.0.0/8/8"])
def test_bad_cluster_cidrs(text: str) -> None:
    with pytest.raises(InputError, match=r"cluster CIDR: expected a range such as .*, not '"):
        parse_cluster_cidrs([text])


def test_one_cluster_cidr_per_family() -> None:
    assert [str(network) for network in parse_cluster_cidrs(["10.0.0.0/8,fd00::/16"])] == ["10.0.0.0/8", "fd00::/16"]
    with pytest.raises(InputError, match=r"at most one range of IPv4, not 10\.0\.0\.0/8 and 11\.0\.0\.0/8"):
        parse_cluster_cidrs(["10.0.0.0/8", "11.0.0.0/8"])


def test_the_configuration_from_settings_and_the_node_object() -> None:
    settings = Settings(
        cluster_cidr=("10.0.0.0/8",), nodeport_addresses=("primary",), masquerade_all=True, acceleration="auto"
    )
    addresses: tuple[Address, ...] = tuple(
        parse_address(text) for text in ("192.0.2.10", "192.0.2.11", "2001:db8::10", "2001:db8::11")
    )
    config = node_config(settings, "n1", ADDRESSES, Node("n1", zone="east", addresses=addresses))
    assert config == NodeConfig(
        "n1",
        zone="east",
        cluster_cidrs=(ipaddress.ip_network("10.0.0.0/8"),),
        masquerade_all=True,
        node_port_ranges=("primary",),
        addresses=ADDRESSES,
        primary=(addresses[0], addresses[2]),
    )
    unknown = node_config(settings, "n1", ADDRESSES)
    assert (unknown.zone, unknown.primary) == ("", ())


def test_what_matters_to_services() -> None:
    config = NodeConfig("n1", zone="east")
    for same in (replace(config, addresses=ADDRESSES), replace(config, node_port_ranges=("primary",))):
        assert config.plans_services_like(same)
    for other in (
        replace(config, name="n2"),
        replace(config, zone="west"),
        replace(config, masquerade_all=True),
        replace(config, cluster_cidrs=parse_cluster_cidrs(["10.0.0.0/8"])),
        replace(config, primary=(parse_address("192.0.2.10"),)),
    ):
        assert not config.plans_services_like(other)
