"""The ipvs proxier after any history: what is read is what was wanted, and nobody else's virtual servers are
touched."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bpfproxy.diff import diff
from bpfproxy.model.address import Address, format_address, parse_address
from bpfproxy.model.frontend import NodePlan
from bpfproxy.model.service import EndpointSlice, Protocol, Service
from bpfproxy.plan import NodeConfig, PlanIndex, plan_service
from bpfproxy.proxiers.base import Key, Row
from bpfproxy.proxiers.ipvs.render import IpvsRenderer
from bpfproxy.proxiers.ipvs.rows import EntryKey, RealKey, RealRow, ServerKey, ServerRow
from tests.unit import ipvs_world, strategies
from tests.unit.simkernel import SimKernel

Rows = dict[Key, Row]
NODES = [parse_address(text) for text in ("192.0.2.1", "192.0.2.200", "2001:db8::1")]
"""Two of them are external addresses of Services as well."""


class Rules:
    """Keeps rows of chains and sysctls as they are: both have tests of their own."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def read(self) -> Rows:
        return dict(self.rows)

    def apply(self, changes: list[tuple[Key, Row]]) -> list[Any]:
        for key, row in changes:
            self.rows.pop(key, None)
            if row is not None:
                self.rows[key] = row
        return []


class World:
    def __init__(self) -> None:
        self.kernel = SimKernel()
        self.rules: Rows = {}
        self.sysctls: dict[str, str] = {}
        self.renderer = IpvsRenderer()
        self.boot()

    def boot(self) -> None:
        self.proxier = ipvs_world.proxier(self.renderer, self.kernel, Rules(self.rules), self.sysctls)
        self.applied = self.proxier.read()

    def bring(self, wanted: Rows) -> None:
        assert self.proxier.apply(diff(self.applied, wanted, self.proxier.phase)) == []
        self.applied = self.proxier.read()
        assert self.applied == wanted

    def wanted(
        self, services: list[Service], slices: list[EndpointSlice], config: NodeConfig, nodes: frozenset[Address]
    ) -> Rows:
        index = PlanIndex()
        index.update(
            {
                one.name: plan_service(one, [item for item in slices if item.service == one.name], config)
                for one in {one.name: one for one in services}.values()
            }
        )
        rows = self.renderer.render_node(NodePlan(node_port_addresses=nodes))
        for plan in index.plans.values():
            rows.update(self.renderer.render(plan))
        return rows


STEPS = st.lists(
    st.tuples(
        st.lists(strategies.services(), max_size=3),
        strategies.slice_lists(strategies.SERVICES[0]),
        strategies.nodes(),
        st.frozensets(st.sampled_from(NODES)),
        st.sampled_from(["", "restart", "tend", "busy", "crash"]),
        st.integers(0, 40),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.frozensets(st.sampled_from(NODES)))
def test_any_history(steps: list[Any], others: frozenset[Address]) -> None:
    world = World()
    world.kernel.others = set(others)
    for services, slices, config, nodes, event, ops in steps:
        wanted = world.wanted(services, slices, config, nodes)
        match event:
            case "restart":
                world.boot()
            case "tend":
                world.kernel.busy.clear()
                world.proxier.tend()
            case "busy":
                world.kernel.busy = {place for at in world.kernel.weights.values() for place in at}
            case "crash":
                world.proxier.apply(diff(world.applied, wanted, world.proxier.phase)[:ops])
                world.boot()
        world.bring(wanted)
    assert_sound(world)
    world.bring(world.renderer.render_node(NodePlan(node_port_addresses=frozenset(NODES))))
    assert_sound(world)
    kernel = world.kernel
    kernel.busy.clear()
    world.proxier.tend()
    assert (kernel.servers, kernel.vips) == ({}, set())
    world.bring({})
    assert (kernel.servers, kernel.sets, kernel.vips, kernel.device) == ({}, {}, set(), False)
    assert (world.rules, world.sysctls) == ({}, {})


def assert_sound(world: World) -> None:
    """VIPs are on the dummy device unless they are elsewhere, and in KUBE-IPVS-IPS with it. Virtual servers that went
    are there for the connections that they have, and take no others."""
    kernel = world.kernel
    retired = {entry.address for name in ("KUBE-RETIRED", "KUBE-6-RETIRED") for entry in kernel.sets[name].entries}
    wanted = {key for key in world.applied if isinstance(key, ServerKey)}
    vips = {key.address for key in wanted if not key.on_node} - kernel.others
    assert vips <= kernel.vips <= vips | retired
    listed = {entry.address for name in ("KUBE-IPVS-IPS", "KUBE-6-IPVS-IPS") for entry in kernel.sets[name].entries}
    assert listed == kernel.vips
    on_node = {key.port for key in wanted if key.on_node}
    for key in kernel.servers.keys() - wanted:
        if key.port not in on_node:
            assert key.address in retired
            assert set(kernel.weights[key].values()) == {0}
            assert kernel.weights[key].keys() <= kernel.busy


def test_a_virtual_server_retires_and_comes_back() -> None:
    """Its connections go on, also over a restart, and it takes new ones again at once."""
    world = World()
    node = world.renderer.render_node(NodePlan())
    server = ServerKey(strategies.CLUSTER_IPS[4][0], 80, Protocol.TCP)
    claim = EntryKey(4, "CLUSTER-IP", server.port, server.protocol, server.address)
    real = RealKey(server, parse_address("10.1.1.1"), 8080)
    place = (real.address, real.port)
    service = {claim: True, server: ServerRow("rr"), real: RealRow(1)}
    for restarts in (False, True):
        world.bring(node | service)
        world.kernel.busy = {place}
        world.bring(node)
        assert world.kernel.weights == {server: {place: 0}}
        assert world.kernel.vips == {server.address}
        assert not world.proxier.drained(())
        if restarts:
            world.boot()
        world.bring(node)
        world.proxier.tend()
        assert world.kernel.weights == {server: {place: 0}}
        world.bring(node | service)
        assert world.kernel.weights == {server: {place: 1}}
        assert world.kernel.sets["KUBE-RETIRED"].entries == []


def test_services_that_differ_on_where_an_endpoint_is() -> None:
    """Each keeps its own row, also over a restart."""
    world = World()
    wanted = world.renderer.render_node(NodePlan())
    for number, local in enumerate((True, False)):
        server = ServerKey(strategies.CLUSTER_IPS[4][number], 80, Protocol.TCP)
        wanted[EntryKey(4, "CLUSTER-IP", server.port, server.protocol, server.address)] = True
        wanted[server] = ServerRow("rr")
        wanted[RealKey(server, parse_address("10.1.1.1"), 8080)] = RealRow(1, local)
    world.bring(wanted)
    world.boot()
    world.bring(wanted)
    assert diff(world.proxier.read(), wanted, world.proxier.phase) == []


def test_a_foreign_server_stands() -> None:
    world = World()
    address = strategies.CLUSTER_IPS[4][0]
    theirs = {ServerKey(address, port, Protocol.TCP): ServerRow("wlc") for port in (53, 80)}
    world.kernel.servers.update(theirs)
    world.kernel.weights.update({key: {} for key in theirs})
    world.boot()
    wanted = world.renderer.render_node(NodePlan()) | {
        ServerKey(address, 80, Protocol.TCP): ServerRow("rr"),
    }
    failures = world.proxier.apply(diff(world.applied, wanted, world.proxier.phase))
    assert [failure.reason for failure in failures] == [
        f"there is a virtual server {format_address(address)}:80/TCP that is not ours"
    ]
    world.boot()
    world.bring({})
    assert world.kernel.servers == theirs
