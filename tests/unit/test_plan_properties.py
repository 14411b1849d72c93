"""The planner says what the oracle says, of any Service, endpoints and node."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bpfproxy.model.frontend import Frontend, FrontendSpec, Masquerade, OnEmpty, Scope, ServicePlan
from bpfproxy.model.service import EndpointSlice, ObjectName, Service
from bpfproxy.plan import NodeConfig, PlanIndex, plan_service
from tests.unit import oracle
from tests.unit.oracle import Answer, Client, Place
from tests.unit.strategies import SERVICES, SLICES, nodes, services, slice_lists, slices

ONE = SERVICES[0]
ITS_SLICES = slice_lists(ONE)


def met_by(client: Client, plan: ServicePlan | None, node: NodeConfig) -> dict[Place, Answer]:
    """What a datapath that follows `plan` answers to `client`."""
    result = {}
    for frontend in plan.frontends if plan else ():
        if frontend.scope is Scope.EXTERNAL:
            inside = client is Client.NODE or (client is Client.POD and node.detects_local(frontend.family))
            spec = spec_for(plan, frontend, inside=inside) if plan else None
            assert spec is not None
            place = Place(frontend.address, frontend.port, frontend.protocol)
            result[place] = read(spec, client)
    return result


def spec_for(plan: ServicePlan, frontend: Frontend, *, inside: bool) -> FrontendSpec:
    spec = plan.frontends[frontend]
    internal = Frontend(frontend.address, frontend.port, frontend.protocol, Scope.INTERNAL)
    assert spec.scoped == (internal in plan.frontends)
    return plan.frontends[internal] if inside and spec.scoped else spec


def read(spec: FrontendSpec, client: Client) -> Answer:
    return Answer(
        spec.kind.label,
        frozenset((backend.address, backend.port) for backend in spec.backends),
        None if spec.backends else {OnEmpty.REJECT: "reject", OnEmpty.DROP: "drop"}[spec.on_empty],
        {
            Masquerade.NEVER: False,
            Masquerade.NOT_LOCAL: client is not Client.POD,
            Masquerade.FROM_NODE: client is Client.NODE,
            Masquerade.ALWAYS: True,
        }[spec.masquerade],
        frozenset((backend.address, backend.port) for backend in spec.draining),
        spec.affinity_timeout,
        spec.source_ranges,
    )


def same(found: Answer, expected: Answer) -> bool:
    unsaid = expected.masqueraded is None
    return (found.masqueraded if not unsaid else None, *fields(found)) == (expected.masqueraded, *fields(expected))


def fields(answer: Answer) -> tuple[object, ...]:
    return answer.kind, answer.targets, answer.refusal, answer.keep, answer.affinity, answer.source_ranges


@settings(max_examples=400, deadline=None)
@given(services(names=st.just(ONE)), ITS_SLICES, nodes())
def test_every_client_meets_what_the_oracle_says(
    service: Service, items: list[EndpointSlice], node: NodeConfig
) -> None:
    plan = plan_service(service, items, node)
    for client in Client:
        found = met_by(client, plan, node)
        expected = oracle.answers(service, items, node, client)
        assert found.keys() == expected.keys()
        for place, answer in expected.items():
            assert same(found[place], answer), (client, place, found[place], answer)


@settings(max_examples=200, deadline=None)
@given(services(names=st.just(ONE)), ITS_SLICES, nodes())
def test_plans_are_in_normal_form(service: Service, items: list[EndpointSlice], node: NodeConfig) -> None:
    plan = plan_service(service, items, node)
    for frontend, spec in (plan.frontends if plan else {}).items():
        for members in (spec.backends, spec.draining):
            assert list(members) == sorted(members)
            assert len({(backend.address, backend.port) for backend in members}) == len(members)
        for backend in (*spec.backends, *spec.draining):
            assert backend.protocol is frontend.protocol
            assert len(backend.address) == len(frontend.address)
        assert not set(spec.backends) & set(spec.draining)
        external = Frontend(frontend.address, frontend.port, frontend.protocol)
        assert plan is not None
        assert external in plan.frontends
    # A set's rows are made from whichever frontend comes first, so all that share one must agree.
    pools: dict[object, object] = {}
    for frontend, spec in (plan.frontends if plan else {}).items():
        members_of_set = (spec.backends, spec.draining, spec.on_empty, spec.scheduler)
        found = pools.setdefault((spec.service_port, frontend.family, spec.pool), members_of_set)
        assert found == members_of_set
        assert isinstance(found, tuple)
        assert found[0] is spec.backends


@settings(max_examples=200, deadline=None)
@given(services(names=st.just(ONE)), ITS_SLICES, nodes())
def test_the_health_check_counts_local_ready_endpoints(
    service: Service, items: list[EndpointSlice], node: NodeConfig
) -> None:
    plan = plan_service(service, items, node)
    wanted = (
        oracle.is_served(service)
        and service.type == "LoadBalancer"
        and service.external_local
        and service.health_check_node_port
    )
    found = plan.health_check if plan else None
    assert (found is not None) == bool(wanted)
    if found is not None:
        assert found.port == service.health_check_node_port
        assert found.local_ready == oracle.local_ready(service, items, node)


@settings(max_examples=200, deadline=None)
@given(services(names=st.just(ONE)), ITS_SLICES, nodes())
def test_the_order_of_slices_matters_only_between_duplicates(
    service: Service, items: list[EndpointSlice], node: NodeConfig
) -> None:
    distinct = []
    seen: set[bytes] = set()
    for item in items:
        kept = []
        for endpoint in item.endpoints:
            if endpoint.address not in seen:
                seen.add(endpoint.address)
                kept.append(endpoint)
        distinct.append(EndpointSlice(item.name, item.service, item.family, item.ports, tuple(kept), item.ignored))
    assert plan_service(service, distinct, node) == plan_service(service, distinct[::-1], node)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(SERVICES), st.none() | services()), max_size=8),
    st.lists(slices(names=st.sampled_from(SLICES)), max_size=3, unique_by=lambda item: item.name),
    nodes(),
)
def test_claims_are_won_by_the_smallest_name(
    events: list[tuple[ObjectName, Service | None]], items: list[EndpointSlice], node: NodeConfig
) -> None:
    index, planned = PlanIndex(), {}
    for name, service in events:
        mine = [item for item in items if item.service == (service.name if service else name)]
        plan = plan_service(service, mine, node)
        name = service.name if service else name
        planned[name] = plan
        before = dict(index.plans)
        delta = index.update({name: plan})
        # What the update reports is what changed, all of it and nothing else.
        for other in before.keys() | index.plans.keys():
            assert (other in delta.plans) == (before.get(other) != index.plans.get(other))
    places = {
        name: {Place(f.address, f.port, f.protocol): None for f in plan.frontends}
        for name, plan in planned.items()
        if plan
    }
    owners = oracle.owners({name: list(of) for name, of in places.items()})
    for name, plan in planned.items():
        if plan is None:
            assert name not in index.plans
            continue
        kept = {f: spec for f, spec in plan.frontends.items() if owners[Place(f.address, f.port, f.protocol)] == name}
        assert index.plans[name].frontends == kept
    lost = {(clash.frontend, clash.winner, clash.loser) for clash in index.clashes}
    assert lost == {
        (Frontend(place.address, place.port, place.protocol), owners[place], name)
        for name, of in places.items()
        for place in of
        if owners[place] != name
    }
