"""Who owns a frontend that several Services claim."""

from __future__ import annotations

from bpfproxy.model.address import parse_address
from bpfproxy.model.frontend import (
    Frontend,
    FrontendKind,
    FrontendSpec,
    HealthCheck,
    Pool,
    Scope,
    ServicePlan,
    ServicePortName,
)
from bpfproxy.model.service import ObjectName, Protocol
from bpfproxy.plan import Clash, PlanIndex

A, B, C = (ObjectName("ns", name) for name in "abc")
SHARED = Frontend(parse_address("192.0.2.1"), 80, Protocol.TCP)
INSIDE = Frontend(SHARED.address, SHARED.port, SHARED.protocol, Scope.INTERNAL)


def own(name: ObjectName) -> Frontend:
    return Frontend(parse_address(f"172.30.0.{ord(name.name)}"), 80, Protocol.TCP)


def plan(name: ObjectName, *frontends: Frontend, affinity: int = 0) -> ServicePlan:
    port = ServicePortName(name, "", Protocol.TCP)
    spec = FrontendSpec(port, FrontendKind.EXTERNAL_IP, Pool.CLUSTER, affinity_timeout=affinity)
    return ServicePlan(name, dict.fromkeys((own(name), *frontends), spec))


def owners(index: PlanIndex) -> dict[Frontend, ObjectName]:
    return {frontend: name for name, found in index.plans.items() for frontend in found.frontends}


def test_without_a_clash_the_plan_itself_is_in_force() -> None:
    index = PlanIndex()
    mine = plan(A, SHARED)
    delta = index.update({A: mine})
    assert delta.plans[A] is mine
    assert delta.frontends == {own(A), SHARED}
    assert delta.clashes == index.clashes == ()


def test_the_smallest_name_wins_in_any_order() -> None:
    for order in ([A, B, C], [C, B, A], [B, A, C]):
        one_by_one, at_once = PlanIndex(), PlanIndex()
        for name in order:
            one_by_one.update({name: plan(name, SHARED)})
        at_once.update({name: plan(name, SHARED) for name in order})
        for index in (one_by_one, at_once):
            assert owners(index)[SHARED] == A
            assert index.clashes == (Clash(SHARED, A, B), Clash(SHARED, A, C))


def test_the_loser_keeps_its_other_frontends_and_takes_over() -> None:
    index = PlanIndex()
    index.update({A: plan(A, SHARED), B: plan(B, SHARED)})
    assert list(index.plans[B].frontends) == [own(B)]
    delta = index.update({A: plan(A)})
    assert owners(index)[SHARED] == B
    assert delta.plans.keys() == {A, B}
    assert delta.frontends == {SHARED}
    delta = index.update({A: plan(A, SHARED)})
    assert owners(index)[SHARED] == A
    assert delta.clashes == (Clash(SHARED, A, B),)
    delta = index.update({A: None})
    assert owners(index) == {own(B): B, SHARED: B}
    assert delta.plans[A] is None
    assert index.clashes == ()


def test_both_scopes_go_together() -> None:
    index = PlanIndex()
    index.update({B: plan(B, SHARED, INSIDE)})
    assert owners(index)[INSIDE] == B
    index.update({A: plan(A, SHARED)})
    assert owners(index)[SHARED] == A
    assert INSIDE not in owners(index)
    index.update({A: None})
    assert owners(index)[SHARED] == owners(index)[INSIDE] == B


def test_a_clash_is_told_once() -> None:
    index = PlanIndex()
    index.update({A: plan(A, SHARED)})
    assert index.update({B: plan(B, SHARED)}).clashes == (Clash(SHARED, A, B),)
    assert index.update({B: plan(B, SHARED, affinity=1)}).clashes == ()
    assert index.update({C: plan(C, SHARED)}).clashes == (Clash(SHARED, A, C),)
    assert index.update({A: plan(A)}).clashes == (Clash(SHARED, B, C),)
    assert str(index.clashes[0]) == "Service ns/c: 192.0.2.1:80/TCP belongs to Service ns/b"


def test_a_claim_that_passes_within_one_update_is_no_clash() -> None:
    index = PlanIndex()
    index.update({A: plan(A, SHARED), B: plan(B)})
    for order in ([B, A], [A, B]):
        plans = {A: plan(A), B: plan(B, SHARED)}
        assert index.update({name: plans[name] for name in order}).clashes == ()
        assert owners(index)[SHARED] == B
        index.update({A: plan(A, SHARED), B: plan(B)})


def test_an_equal_plan_is_no_change() -> None:
    index = PlanIndex()
    index.update({A: plan(A, SHARED)})
    delta = index.update({A: plan(A, SHARED), B: None})
    assert (delta.plans, delta.frontends) == ({}, frozenset())


def test_a_loser_that_changes_in_what_it_lost_alone_is_no_change() -> None:
    index = PlanIndex()
    index.update({A: plan(A, SHARED), B: plan(B, SHARED)})
    assert index.update({B: plan(B, SHARED, INSIDE)}).plans == {}


def test_a_service_that_lost_everything_keeps_its_health_check() -> None:
    index = PlanIndex()
    spec = FrontendSpec(ServicePortName(B, "", Protocol.TCP), FrontendKind.LOAD_BALANCER, Pool.LOCAL)
    index.update({A: plan(A, SHARED), B: ServicePlan(B, {SHARED: spec}, HealthCheck(B, 32000, 1))})
    assert index.plans[B] == ServicePlan(B, {}, HealthCheck(B, 32000, 1))
