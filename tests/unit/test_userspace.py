"""The userspace proxier without a kernel's rules: what it would do, whom it chooses, what it says to its process."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfproxy.api import plan_objects
from bpfproxy.config import Settings
from bpfproxy.model.address import ANY4, parse_address
from bpfproxy.model.frontend import Backend, Frontend, NodePlan, OnEmpty, Scope, ServicePortName
from bpfproxy.model.service import ObjectName, Protocol, Service
from bpfproxy.plan import NodeConfig, plan_service
from bpfproxy.proxiers.base import Op
from bpfproxy.proxiers.userspace import redirect, wire
from bpfproxy.proxiers.userspace.choice import Affinities, Choice
from bpfproxy.proxiers.userspace.redirect import Way
from bpfproxy.proxiers.userspace.rows import Inside, NodeAddress, PortalRow, UserspaceRenderer
from bpfproxy.sources.files import load_manifests
from tests.unit import strategies

MANIFESTS = Path(__file__).with_name("golden") / "nftables"
SETTINGS = Settings(node_name="n1", cluster_cidr=("10.0.0.0/8",))
RENDERER = UserspaceRenderer()

PORTALS = {
    "cluster-ip": {"172.30.0.41:80/TCP": "10.180.0.1:80"},
    "external-ip": {
        "172.30.0.44:80/TCP": "10.180.0.4:80, 10.180.0.5:80",
        "192.168.99.33:80/TCP": "10.180.0.4:80, 10.180.0.5:80",
    },
    "external-local": {
        "172.30.0.47:80/TCP": "10.180.0.7:80, 10.180.0.8:80",
        "0.0.0.0:3007/TCP": "10.180.0.7:80",
        "0.0.0.0:3007/TCP/internal": "10.180.0.7:80",
    },
    "internal-local": {"172.30.0.41:80/TCP": "none: drop"},
    "load-balancer-local": {
        "172.30.0.42:80/TCP": "10.180.0.2:80",
        "192.168.99.22:80/TCP": "none: drop",
        "192.168.99.22:80/TCP/internal": "10.180.0.2:80",
        "1.2.3.4:80/TCP": "none: drop",
        "1.2.3.4:80/TCP/internal": "10.180.0.2:80",
        "0.0.0.0:3001/TCP": "none: drop",
        "0.0.0.0:3001/TCP/internal": "10.180.0.2:80",
    },
    "load-balancer": {
        "172.30.0.45:80/TCP": "10.180.0.3:80; affinity 10800 s",
        "5.6.7.8:80/TCP": "10.180.0.3:80; affinity 10800 s; only from 192.168.0.0/24, 203.0.113.0/25",
        "0.0.0.0:3002/TCP": "10.180.0.3:80; affinity 10800 s",
    },
    "no-endpoints": {
        "172.30.0.46:80/TCP": "none: reject",
        "192.168.99.66:80/TCP": "none: reject",
        "0.0.0.0:3006/TCP": "none: reject",
    },
    "node-port": {"172.30.0.43:80/TCP": "10.180.0.3:80", "0.0.0.0:3003/TCP": "10.180.0.3:80"},
    "udp": {"172.30.0.48:53/UDP": "10.180.0.8:53; draining 10.180.0.9:53, 10.180.0.10:53"},
    "dual-stack": {},  # of SCTP, which is not relayed
}
"""By a manifest: frontends and what is behind them."""


# ---- rendering ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PORTALS)
def test_a_service(name: str) -> None:
    [plan] = plan_objects(load_manifests([MANIFESTS / f"{name}.yaml"]), SETTINGS).services.values()
    described = [RENDERER.describe(key, row) for key, row in RENDERER.render(plan).items()]
    assert {table for table, _, _ in described} <= {"portals4"}
    assert {key: row for _, key, row in described} == PORTALS[name]


def test_the_node() -> None:
    networks = tuple(
        ipaddress.ip_network(text) for text in ("10.1.0.0/17", "10.1.128.0/17", "10.1.2.0/24", "fd00::/48")
    )
    plan = NodePlan(frozenset({parse_address("192.0.2.7")}), localhost_node_ports=(4, 6), cluster_networks=networks)
    rows = RENDERER.render_node(plan)
    assert {RENDERER.describe(key, row) for key, row in rows.items()} == {
        ("node_addresses4", "192.0.2.7", "NodePorts"),
        ("node_addresses4", "127.0.0.1", "NodePorts"),
        ("node_addresses6", "::1", "NodePorts"),
        ("inside4", "10.1.0.0/16", "pods of the cluster"),
        ("inside6", "fd00::/48", "pods of the cluster"),
    }


def test_what_is_no_row_cannot_be_described() -> None:
    with pytest.raises(TypeError):
        RENDERER.describe("key", True)


@given(service=strategies.services(), slices=st.data(), node=strategies.nodes())
def test_every_frontend_that_is_relayed_has_a_row(service: Service, slices: st.DataObject, node: NodeConfig) -> None:
    plan = plan_service(service, slices.draw(strategies.slice_lists(service.name)), node)
    if plan is None:
        return
    rows = RENDERER.render(plan)
    assert rows.keys() == {one for one in plan.frontends if one.protocol is not Protocol.SCTP}
    for key, row in rows.items():
        spec = plan.frontends[key]
        assert row.backends == spec.backends
        assert row.draining == (spec.draining if key.protocol is Protocol.UDP else ())
        assert all((":" in text) == (key.family == 6) for text in row.source_ranges)
        assert RENDERER.describe(key, row)[1] == str(key)


def test_the_order_of_a_sync() -> None:
    key, row = Frontend(ANY4, 80, Protocol.TCP), PortalRow(NAME, ())
    ops = [Op(Inside("10.0.0.0/8"), True), Op(key, row), Op(key, None), Op(Inside("10.0.0.0/8"), None)]
    assert sorted([ops[n] for n in (3, 1, 2, 0)], key=RENDERER.phase) == ops


# ---- choice ------------------------------------------------------------------------------------------------------

NAME = ServicePortName(ObjectName("ns", "a"), "http", Protocol.TCP)
BACKENDS = [Backend(parse_address(f"10.0.0.{n}"), 80, Protocol.TCP) for n in (1, 2, 3)]
ALICE, BOB, CAROL = (parse_address(f"192.0.2.{n}") for n in (1, 2, 3))


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def first(choice: Choice, client: bytes) -> Backend:
    """The backend that a new connection gets."""
    backend = choice.order(client)[0]  # type: ignore[arg-type]
    choice.took(client, backend)  # type: ignore[arg-type]
    return backend


def test_backends_take_turns() -> None:
    choice = Choice(Affinities())
    choice.set(BACKENDS, 0)
    orders = [choice.order(ALICE) for _ in range(6)]
    assert {order[0] for order in orders[:3]} == set(BACKENDS)
    assert orders[3:] == orders[:3]
    assert all(sorted(order) == BACKENDS for order in orders), "those to be tried next"
    choice.set(BACKENDS[:1], 0)
    assert [choice.order(ALICE) for _ in range(2)] == [BACKENDS[:1]] * 2
    choice.set([], 0)
    assert choice.order(ALICE) == []


def test_the_window_of_an_affinity_slides() -> None:
    clock = Clock()
    choice = Choice(Affinities(clock))
    choice.set(BACKENDS, 10)
    had = first(choice, ALICE)
    for _ in range(5):
        clock.now += 9.9
        assert first(choice, ALICE) == had
        assert sorted(choice.order(BOB)) == BACKENDS
    clock.now += 10
    assert first(choice, ALICE) != had, "its turn comes later"


def test_an_affinity_is_one_for_all_frontends_of_a_service_port() -> None:
    affinities = Affinities(Clock())
    one, other = Choice(affinities), Choice(affinities)
    for choice in (one, other):
        choice.set(BACKENDS, 10)
    assert len({first(choice, ALICE) for choice in (one, other) * 3}) == 1


def test_an_affinity_to_an_endpoint_that_is_gone_is_forgotten() -> None:
    choice = Choice(Affinities(Clock()))
    choice.set(BACKENDS, 10)
    had = first(choice, ALICE)
    left = [one for one in BACKENDS if one != had]
    choice.set(left, 10)
    now = first(choice, ALICE)
    assert now in left
    choice.set(BACKENDS, 10)
    assert [first(choice, ALICE) for _ in range(4)] == [now] * 4


def test_a_client_sticks_to_the_one_that_took_the_connection() -> None:
    choice = Choice(Affinities(Clock()))
    choice.set(BACKENDS, 10)
    _, second, _ = choice.order(ALICE)
    choice.took(ALICE, second)
    assert [choice.order(ALICE)[0] for _ in range(3)] == [second] * 3


def test_affinities_are_bounded_in_number_and_time() -> None:
    clock = Clock()
    affinities = Affinities(clock, size=2)
    for client, backend in zip((ALICE, BOB, CAROL), BACKENDS, strict=True):
        clock.now += 1
        affinities.note(client, backend, 10)
    assert [affinities.of(client, 10) for client in (ALICE, BOB, CAROL)] == [None, *BACKENDS[1:]]
    clock.now += 9
    affinities.note(ALICE, BACKENDS[0], 10)
    assert len(affinities) == 2, "that of BOB is over"
    assert affinities.of(CAROL, 10) == BACKENDS[2]


@given(st.lists(st.tuples(st.sampled_from([ALICE, BOB, CAROL]), st.floats(0, 15)), max_size=40), st.integers(1, 3))
def test_an_affinity_holds_as_long_as_it_should(steps: list[tuple[bytes, float]], count: int) -> None:
    clock = Clock()
    choice = Choice(Affinities(clock))
    choice.set(BACKENDS[:count], 10)
    had: dict[bytes, tuple[Backend, float]] = {}
    for client, pause in steps:
        clock.now += pause
        backend = first(choice, client)
        if client in had and clock.now - had[client][1] < 10:
            assert backend == had[client][0]
        had[client] = (backend, clock.now)


# ---- the table ---------------------------------------------------------------------------------------------------

VIP = Frontend(parse_address("172.30.0.41"), 80, Protocol.TCP)
NODE_PORT6 = Frontend(parse_address("::"), 30053, Protocol.UDP, Scope.INTERNAL)


def table(text: str) -> list[str]:
    """Commands written with `TABLE` for the table."""
    return [line.strip().replace("TABLE", "inet bpfproxy-userspace") for line in text.strip().splitlines()]


def test_a_way_to_a_listener() -> None:
    assert redirect.put(VIP, Way(40001, OnEmpty.REJECT, ("192.0.2.0/24", "203.0.113.7/32")), None) == table(
        """
        add chain TABLE to-tcp-80-v4-40001
        flush chain TABLE to-tcp-80-v4-40001
        add rule TABLE to-tcp-80-v4-40001 ip saddr != { 192.0.2.0/24, 203.0.113.7/32 } drop
        add rule TABLE to-tcp-80-v4-40001 meta l4proto tcp redirect to :40001
        add element TABLE listeners4 { tcp . 40001 }
        add element TABLE portals4-external { 172.30.0.41 . tcp . 80 : goto to-tcp-80-v4-40001 }
        """.replace("to-tcp-80-v4-40001", "to-tcp-40001-v4")
    )


def test_a_way_that_changes() -> None:
    assert redirect.put(NODE_PORT6, Way(40002, OnEmpty.REJECT), Way(40001, OnEmpty.REJECT)) == table(
        """
        add chain TABLE to-udp-40002-v6
        flush chain TABLE to-udp-40002-v6
        add rule TABLE to-udp-40002-v6 meta l4proto udp redirect to :40002
        add element TABLE listeners6 { udp . 40002 }
        delete element TABLE node-portals6-internal { udp . 30053 }
        add element TABLE node-portals6-internal { udp . 30053 : goto to-udp-40002-v6 }
        flush chain TABLE to-udp-40001-v6
        delete chain TABLE to-udp-40001-v6
        delete element TABLE listeners6 { udp . 40001 }
        """
    )


@pytest.mark.parametrize(("on_empty", "verdict"), [(OnEmpty.REJECT, "goto refuse"), (OnEmpty.DROP, "drop")])
def test_a_way_to_nobody(on_empty: OnEmpty, verdict: str) -> None:
    way = redirect.way(PortalRow(NAME, (), on_empty=on_empty, source_ranges=("192.0.2.0/24",)), 0)
    assert redirect.put(VIP, way, None) == table(
        f"add element TABLE portals4-external {{ 172.30.0.41 . tcp . 80 : {verdict} }}"
    )
    assert redirect.take(VIP, way) == table("delete element TABLE portals4-external { 172.30.0.41 . tcp . 80 }")


def test_a_way_that_goes() -> None:
    assert redirect.take(VIP, Way(40001, OnEmpty.REJECT)) == table(
        """
        delete element TABLE portals4-external { 172.30.0.41 . tcp . 80 }
        flush chain TABLE to-tcp-40001-v4
        delete chain TABLE to-tcp-40001-v4
        delete element TABLE listeners4 { tcp . 40001 }
        """
    )


def test_rows_of_the_node() -> None:
    assert [
        redirect.set_node(NodeAddress(parse_address("fd02::7")), present=True),
        redirect.set_node(Inside("10.0.0.0/8"), present=False),
    ] == table(
        """
        add element TABLE node-addresses6 { fd02::7 }
        delete element TABLE inside4 { 10.0.0.0/8 }
        """
    )


def test_where_udp_flows_may_lead() -> None:
    external = Frontend(ANY4, 53, Protocol.UDP)
    internal = Frontend(ANY4, 53, Protocol.UDP, Scope.INTERNAL)
    ways = {external: Way(0, OnEmpty.DROP), internal: Way(40001, OnEmpty.REJECT), VIP: Way(40002, OnEmpty.REJECT)}
    assert redirect.serving(ways, [external, VIP]) == {(ANY4, 53): frozenset({(ANY4, 40001)})}
    assert redirect.serving({}, [external]) == {(ANY4, 53): frozenset()}


# ---- the wire ----------------------------------------------------------------------------------------------------

ROWS = st.builds(
    PortalRow,
    st.just(NAME),
    st.lists(st.sampled_from(BACKENDS), max_size=3).map(tuple),
    st.lists(st.sampled_from(BACKENDS), max_size=3).map(tuple),
    st.sampled_from(OnEmpty),
    st.integers(0, 86400),
    st.lists(st.just("192.0.2.0/24"), max_size=2).map(tuple),
)
FRONTENDS = st.sampled_from([VIP, NODE_PORT6])
REQUESTS = st.one_of(
    st.lists(st.builds(wire.Portal, FRONTENDS, ROWS, st.integers(0, 65535))).map(wire.Put),
    st.lists(FRONTENDS).map(wire.Take),
    st.sampled_from([wire.Ask(), wire.Weigh(), wire.Retire()]),
)


@given(st.lists(REQUESTS, max_size=3))
def test_requests_arrive_as_they_were(requests: list[wire.Request]) -> None:
    async def receive() -> list[wire.Request]:
        reader = asyncio.StreamReader()
        reader.feed_data(b"".join(map(wire.encode, requests)))
        reader.feed_eof()
        found = []
        while (request := await wire.receive(reader)) is not None:
            found.append(request)
        return found

    assert asyncio.run(receive()) == requests


@given(st.binary(max_size=64))
def test_anything_else_is_refused_or_the_end(garbage: bytes) -> None:
    async def receive() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(garbage)
        reader.feed_eof()
        try:
            assert await wire.receive(reader) is None or len(garbage) > 4
        except ValueError:
            assert len(garbage) >= 4

    asyncio.run(receive())
