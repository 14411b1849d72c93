"""The engine over simulated kernels: one thing at a time."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping

import pytest
from msgspec.structs import replace

from bpfproxy.diff import Phase, diff_keys
from bpfproxy.engine import Engine
from bpfproxy.model.address import parse_address
from bpfproxy.model.event import ObjectKey, Update
from bpfproxy.model.frontend import Frontend, HealthCheck, ServicePlan
from bpfproxy.model.service import (
    Node,
)
from bpfproxy.proxiers.base import Key, Op, Row, Rows
from tests.unit.engine_world import (
    ALL,
    DNS,
    DNS_IP,
    DNS_SLICE,
    EVERYTHING,
    NODE,
    WEB,
    WEB_IP,
    WEB_SLICE,
    World,
    endpoints,
    service,
)
from tests.unit.simproxier import (
    DiedError,
    Kernel,
    NodeAddress,
    SetMembers,
    SetName,
    SimProxier,
)


@pytest.fixture
def world() -> World:
    world = World()
    world.engine.update(EVERYTHING)
    world.engine.sync()
    world.proxier.ops.clear()
    return world


class TestSync:
    def test_the_first_one_writes_everything(self) -> None:
        world = World()
        world.engine.update(EVERYTHING)
        report = world.engine.sync()
        assert world.backends(WEB_IP) == ["10.0.0.1:8080", "10.0.0.2:8080"]
        assert world.backends(DNS_IP) == ["10.0.0.3:8080"]
        assert (report.planned, report.frontends, report.failures) == (2, frozenset({WEB_IP, DNS_IP}), ())
        assert report.ops == len(world.kernel) == 4 + 3  # the node's address and both loopbacks
        assert (report.service_events, report.endpoint_events) == (2, 2)
        assert world.engine.pending == 0

    def test_one_changed_slice_is_one_planned_service_and_one_op(self, world: World) -> None:
        world.engine.update(Update((endpoints("web", "10.0.0.1"),)))
        report = world.engine.sync()
        assert (report.planned, report.ops, report.frontends) == (1, 1, frozenset({WEB_IP}))
        assert [type(op.key) for op in world.proxier.ops] == [SetName]
        assert world.backends(WEB_IP) == ["10.0.0.1:8080"]

    def test_it_compares_the_rows_of_that_service_alone(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        compared: list[Key] = []

        def noting(applied: Rows, goal: Mapping[Key, Row | None], phase: Phase) -> list[Op]:
            compared.extend(goal)
            return diff_keys(applied, goal, phase)

        monkeypatch.setattr("bpfproxy.engine.diff_keys", noting)
        world.engine.update(Update((endpoints("web", "10.0.0.1"),)))
        world.engine.sync()
        assert WEB_IP in compared
        assert DNS_IP not in compared

    def test_nothing_to_do(self, world: World) -> None:
        report = world.engine.sync()
        assert (report.planned, report.ops, report.frontends) == (0, 0, frozenset())

    def test_a_reverted_change_is_no_op(self, world: World) -> None:
        for update in (
            Update((endpoints("web"), replace(DNS, internal_local=True))),
            Update((WEB_SLICE,), removed=(ObjectKey("Service", WEB.name),)),
            Update((WEB, DNS)),
        ):
            world.engine.update(update)
        report = world.engine.sync()
        assert (report.planned, report.ops) == (0, 0)

    def test_a_change_without_a_meaning_is_no_op(self, world: World) -> None:
        other = replace(WEB_SLICE, endpoints=WEB_SLICE.endpoints[::-1])
        world.engine.update(Update((other,)))
        report = world.engine.sync()
        assert (report.planned, report.ops, report.frontends) == (1, 0, frozenset())

    def test_a_removed_service_goes_frontend_first(self, world: World) -> None:
        world.engine.update(Update(removed=(ObjectKey("Service", WEB.name),)))
        report = world.engine.sync()
        assert report.frontends == {WEB_IP}
        assert [(type(op.key), op.row) for op in world.proxier.ops] == [(Frontend, None), (SetName, None)]
        assert world.engine.plan_of(WEB.name) is None

    def test_a_frontend_may_pass_from_one_service_to_another(self, world: World) -> None:
        world.engine.update(
            Update((replace(DNS, cluster_ips=WEB.cluster_ips),), removed=(ObjectKey("Service", WEB.name),))
        )
        world.engine.sync()
        assert world.backends(WEB_IP) == ["10.0.0.3:8080"]
        assert Op(WEB_IP, None) not in world.proxier.ops
        assert DNS_IP not in world.kernel

    def test_every_sync_activates(self, world: World) -> None:
        world.engine.sync()
        assert world.proxier.activations == [True, True]

    def test_accessors(self, world: World) -> None:
        assert world.engine.frontends().keys() == {WEB_IP, DNS_IP}
        plan = world.engine.plan_of(WEB.name)
        assert plan is not None
        assert list(plan.frontends) == [WEB_IP]
        assert world.engine.store.service(WEB.name) == WEB
        assert world.engine.node == NODE

    def test_health_checks(self, world: World) -> None:
        balanced = replace(DNS, type="LoadBalancer", external_local=True, health_check_node_port=32000)
        world.engine.update(Update((balanced,)))
        world.engine.sync()
        assert world.engine.health_checks() == (HealthCheck(DNS.name, 32000, 1),)
        world.engine.update(Update((endpoints("dns", "10.0.0.3", where="n2"),)))
        world.engine.sync()
        assert world.engine.health_checks() == (HealthCheck(DNS.name, 32000, 0),)
        world.engine.update(Update((DNS,)))
        world.engine.sync()
        assert world.engine.health_checks() == ()

    def test_clashes_are_told(self, world: World) -> None:
        world.engine.update(Update((service("xxx", "172.30.0.1"),)))
        report = world.engine.sync()
        assert [str(clash) for clash in report.clashes] == [
            "Service ns/xxx: 172.30.0.1:80/TCP belongs to Service ns/web"
        ]
        assert world.engine.sync().clashes == ()
        assert len(world.engine.clashes) == 1

    def test_the_default_must_be_there(self) -> None:
        with pytest.raises(ValueError, match="expected one of the proxiers one as the default, not 'two'"):
            Engine({"one": SimProxier("one", {})}, "two", NODE)


class TestNode:
    def test_addresses_are_the_nodes_own_rows(self, world: World) -> None:
        new = parse_address("192.0.2.11")
        world.engine.set_node(replace(NODE, addresses=frozenset({new})))
        report = world.engine.sync()
        assert (report.planned, report.ops) == (0, 2)
        assert NodeAddress(new) in world.kernel
        assert world.engine.node_plan.node_port_addresses == {new}

    @pytest.mark.parametrize(
        "change",
        [
            {"zone": "east"},
            {"name": "n2"},
            {"masquerade_all": True},
            {"cluster_cidrs": (ipaddress.ip_network("10.0.0.0/8"),)},
        ],
    )
    def test_what_matters_to_services_plans_them_all(self, world: World, change: dict[str, object]) -> None:
        world.engine.set_node(replace(NODE, **change))
        assert world.engine.sync().planned == 2
        assert world.engine.sync().planned == 0

    def test_what_matters_is_not_forgotten_over_what_does_not(self, world: World) -> None:
        world.engine.set_node(replace(NODE, zone="east"))
        world.engine.set_node(replace(NODE, zone="east", addresses=frozenset()))
        assert world.engine.sync().planned == 2

    def test_an_equal_configuration_is_no_work(self, world: World) -> None:
        world.engine.set_node(replace(NODE))
        report = world.engine.sync()
        assert (report.planned, report.ops) == (0, 0)

    def test_changed_node_objects_are_told(self, world: World) -> None:
        world.engine.update(Update((Node("n1", zone="east"),)))
        assert world.engine.sync().nodes == {"n1"}


class TestFailures:
    @staticmethod
    def sets(op: Op) -> bool:
        return isinstance(op.row, SetMembers)

    def test_they_stay_pending_until_they_succeed(self, world: World) -> None:
        world.proxier.refuses = self.sets
        world.engine.update(Update((service("new", "172.30.0.3"), endpoints("web", "10.0.0.9"))))
        report = world.engine.sync()
        assert sorted(failure.reason for failure in report.failures) == [
            "its set could not be written",
            *["refused"] * 2,
        ]
        assert (report.ops, world.engine.pending) == (0, 3)
        assert world.backends(WEB_IP) == ["10.0.0.1:8080", "10.0.0.2:8080"]
        report = world.engine.sync()
        assert (report.planned, len(report.failures)) == (0, 3)
        world.proxier.refuses = lambda op: False
        report = world.engine.sync()
        assert (report.planned, report.ops, report.failures, world.engine.pending) == (0, 3, (), 0)
        assert world.backends(WEB_IP) == ["10.0.0.9:8080"]
        assert world.engine.sync().ops == 0

    def test_others_are_not_held_up(self, world: World) -> None:
        world.proxier.refuses = lambda op: op.key == WEB_IP
        world.engine.update(Update((replace(WEB, affinity_timeout=1), replace(DNS, affinity_timeout=1))))
        report = world.engine.sync()
        assert [failure.op.key for failure in report.failures] == [WEB_IP]
        assert world.kernel[DNS_IP].spec.affinity_timeout == 1

    def test_a_set_stays_as_long_as_a_frontend_leads_to_it(self, world: World) -> None:
        world.proxier.refuses = lambda op: op.key == WEB_IP
        world.engine.update(Update(removed=(ObjectKey("Service", WEB.name),)))
        assert len(world.engine.sync().failures) == 2
        world.proxier.refuses = lambda op: False
        assert world.engine.sync().ops == 2
        assert WEB_IP not in world.kernel

    def test_a_change_back_ends_the_retries(self, world: World) -> None:
        world.proxier.refuses = self.sets
        world.engine.update(Update((endpoints("web", "10.0.0.9"),)))
        world.engine.sync()
        world.engine.update(Update((WEB_SLICE,)))
        report = world.engine.sync()
        assert (report.ops, report.failures, world.engine.pending) == (0, (), 0)

    def test_after_an_exception_the_rows_are_read_back(self, world: World) -> None:
        world.proxier.die_after = 1
        world.engine.update(Update((endpoints("web", "10.0.0.8"), endpoints("dns", "10.0.0.9"))))
        with pytest.raises(DiedError):
            world.engine.sync()
        world.proxier.die_after = None
        assert world.engine.sync().ops == 1
        assert (world.backends(WEB_IP), world.backends(DNS_IP)) == (["10.0.0.8:8080"], ["10.0.0.9:8080"])

    def test_a_change_outlives_an_exception_in_rendering(self, world: World) -> None:
        render = world.proxier.render

        def broken(plan: ServicePlan) -> dict[Key, Row]:
            raise ArithmeticError

        world.engine.update(Update((endpoints("web", "10.0.0.9"),)))
        world.proxier.render = broken  # type: ignore[method-assign]
        with pytest.raises(ArithmeticError):
            world.engine.sync()
        world.proxier.render = render  # type: ignore[method-assign]
        assert world.engine.sync().ops == 1
        assert world.backends(WEB_IP) == ["10.0.0.9:8080"]


class TestRestart:
    def test_only_the_difference_is_applied(self, world: World) -> None:
        engine = world.boot()
        engine.update(Update((WEB, endpoints("web", "10.0.0.1"), DNS, DNS_SLICE), complete=True))
        assert engine.sync().ops == 1
        assert world.backends(WEB_IP) == ["10.0.0.1:8080"]

    def test_nothing_is_pruned_before_everything_is_known(self, world: World) -> None:
        engine = world.boot()
        engine.update(Update((WEB, endpoints("web", "10.0.0.9"))))
        assert engine.sync().ops == 1
        assert world.backends(WEB_IP) == ["10.0.0.9:8080"]
        assert world.backends(DNS_IP) == ["10.0.0.3:8080"]
        engine.update(Update(removed=(ObjectKey("Service", WEB.name),)))
        assert engine.sync().ops == 0
        assert engine.resync().ops == 0
        assert world.proxier.activations == [False, False, False]
        assert engine.pending == 0
        engine.update(ALL)
        assert engine.sync().ops == 4
        assert world.kernel.keys() == {
            NodeAddress(parse_address("192.0.2.10")),
            *map(NodeAddress, ("localhost4", "localhost6")),
        }

    @pytest.mark.parametrize("ops", range(8))
    def test_a_crash_anywhere_is_repaired(self, ops: int) -> None:
        world = World()
        world.engine.update(EVERYTHING)
        world.proxier.die_after = ops
        try:
            world.engine.sync()
        except DiedError:
            assert len(world.kernel) == ops
        engine = world.boot()
        engine.update(EVERYTHING)
        assert engine.sync().ops == 7 - ops
        assert world.backends(WEB_IP) == ["10.0.0.1:8080", "10.0.0.2:8080"]

    def test_sync_starts_by_itself(self, world: World) -> None:
        engine = Engine({"one": SimProxier("one", world.kernel)}, "one", NODE)
        engine.update(EVERYTHING)
        assert engine.sync().ops == 0

    def test_resync_repairs_what_others_broke(self, world: World) -> None:
        kernel = world.kernel
        stray = replace(WEB_IP, port=81)
        kernel[stray] = kernel[WEB_IP]
        del kernel[DNS_IP]
        assert world.engine.sync().ops == 0
        assert world.engine.resync().ops == 2
        assert (stray in kernel, DNS_IP in kernel) == (False, True)


def test_the_types_agree() -> None:
    """A simulated proxier is one."""
    from bpfproxy.proxiers.base import Proxier

    make: Callable[[str, Kernel], Proxier] = SimProxier
    assert make("one", {}).name == "one"
