"""Rules 7 to 18 of the semantics, one by one, as far as they are the planner's: what frontends do with endpoints."""

from __future__ import annotations

import ipaddress

import pytest
from msgspec.structs import replace

from bpfproxy.model.address import Address, parse_address
from bpfproxy.model.frontend import (
    Backend,
    Frontend,
    FrontendKind,
    FrontendSpec,
    HealthCheck,
    Masquerade,
    OnEmpty,
    Pool,
    Scope,
)
from bpfproxy.model.service import (
    Endpoint,
    Protocol,
    Scheduler,
    ServicePort,
)
from bpfproxy.plan import NodeConfig
from tests.unit.planning import (
    CLUSTER_IP,
    DETECTING,
    EXTERNALS,
    LOAD_BALANCER,
    NODE,
    NODE_PORT,
    OPEN,
    PLAIN,
    SCTP,
    TCP,
    UDP,
    WEB,
    dead,
    draining,
    endpoint,
    endpoint_slice,
    hinted,
    plan,
    specs,
    texts,
    unready,
)


class TestRule7ClusterIP:
    @pytest.mark.parametrize(
        ("node", "masquerade"),
        [
            (NODE, Masquerade.NEVER),
            (DETECTING, Masquerade.NOT_LOCAL),
            (replace(DETECTING, cluster_cidrs=(ipaddress.ip_network("fd00::/16"),)), Masquerade.NEVER),
            (replace(DETECTING, masquerade_all=True), Masquerade.ALWAYS),
            (replace(NODE, masquerade_all=True), Masquerade.ALWAYS),
        ],
    )
    def test_masquerade(self, node: NodeConfig, masquerade: Masquerade) -> None:
        assert specs(plan(PLAIN, node=node))[CLUSTER_IP].masquerade is masquerade

    def test_the_whole_frontend(self) -> None:
        found = plan(PLAIN, endpoint_slice(endpoint("10.0.0.1"), endpoint("10.0.0.2", "n2")))
        assert found.name == WEB
        assert list(found.frontends) == [Frontend(parse_address("172.30.0.1"), 80, TCP)]
        (spec,) = found.frontends.values()
        assert str(spec.service_port) == "ns1/web:http/TCP"
        assert (spec.kind, spec.pool, spec.scoped) == (FrontendKind.CLUSTER_IP, Pool.CLUSTER, False)
        assert spec.backends == (
            Backend(parse_address("10.0.0.1"), 8080, TCP, local=True),
            Backend(parse_address("10.0.0.2"), 8080, TCP),
        )
        assert (spec.draining, spec.source_ranges, spec.affinity_timeout, spec.scheduler) == ((), (), 0, None)


class TestRule8ExternalCluster:
    def test_all_kinds_lead_to_the_same_backends(self) -> None:
        found = specs(plan(OPEN, endpoint_slice(endpoint("10.0.0.1"), endpoint("10.0.0.2", "n2")), node=DETECTING))
        assert found.keys() == {CLUSTER_IP, *EXTERNALS}
        assert {spec.kind.label for spec in found.values()} == {"ClusterIP", "ExternalIP", "LoadBalancer", "NodePort"}
        for name in EXTERNALS:
            assert found[name].masquerade is Masquerade.ALWAYS
            assert found[name].backends is found[CLUSTER_IP].backends
            assert not found[name].scoped

    def test_a_node_port_of_zero_is_none(self) -> None:
        assert NODE_PORT not in specs(plan(replace(OPEN, ports=PLAIN.ports)))

    def test_an_address_that_is_both_a_load_balancers_and_external_stays_restricted(self) -> None:
        ranges = (ipaddress.ip_network("203.0.113.0/24"),)
        service = replace(OPEN, external_ips=OPEN.load_balancer_ips, source_ranges=ranges)
        assert specs(plan(service))[LOAD_BALANCER].source_ranges == ranges

    def test_a_cluster_ip_that_is_named_as_external_stays_a_cluster_ip(self) -> None:
        service = replace(OPEN, external_ips=OPEN.cluster_ips, external_local=True)
        found = specs(plan(service))
        assert found[CLUSTER_IP].kind is FrontendKind.CLUSTER_IP
        assert f"{CLUSTER_IP}/internal" not in found


class TestRule9ExternalLocal:
    SERVICE = replace(OPEN, external_local=True)

    def both(self, *endpoints: Endpoint) -> list[tuple[FrontendSpec, FrontendSpec]]:
        found = specs(plan(self.SERVICE, endpoint_slice(*endpoints), node=DETECTING))
        assert found.keys() == {CLUSTER_IP, *EXTERNALS, *(f"{name}/internal" for name in EXTERNALS)}
        assert found[CLUSTER_IP].pool is Pool.CLUSTER
        return [(found[name], found[f"{name}/internal"]) for name in EXTERNALS]

    def test_local_endpoints_for_everybody(self) -> None:
        for external, internal in self.both(endpoint("10.0.0.1"), endpoint("10.0.0.2", "n2")):
            assert external.pool is internal.pool is Pool.LOCAL
            assert texts(external.backends) == ["10.0.0.1:8080"]
            assert external.backends is internal.backends
            assert (external.scoped, internal.scoped) == (True, False)
            assert (external.masquerade, internal.masquerade) == (Masquerade.NEVER, Masquerade.FROM_NODE)

    def test_local_terminating_ones_count(self) -> None:
        for external, internal in self.both(draining("10.0.0.1"), endpoint("10.0.0.2", "n2")):
            assert texts(external.backends) == texts(internal.backends) == ["10.0.0.1:8080"]

    def test_without_any_the_inside_uses_the_cluster_set_and_the_outside_is_dropped(self) -> None:
        for external, internal in self.both(endpoint("10.0.0.2", "n2")):
            assert (external.pool, external.backends, external.on_empty) == (Pool.LOCAL, (), OnEmpty.DROP)
            assert (internal.pool, texts(internal.backends)) == (Pool.CLUSTER, ["10.0.0.2:8080"])
            assert internal.masquerade is Masquerade.FROM_NODE

    def test_without_endpoints_anywhere_all_are_rejected(self) -> None:
        for external, internal in self.both(unready("10.0.0.2", "n2")):
            assert (external.backends, external.on_empty) == ((), OnEmpty.REJECT)
            assert (internal.backends, internal.on_empty) == ((), OnEmpty.REJECT)


class TestRule10InternalLocal:
    SERVICE = replace(OPEN, internal_local=True)

    def test_the_cluster_ip_alone_is_local(self) -> None:
        found = specs(plan(self.SERVICE, endpoint_slice(endpoint("10.0.0.1"), endpoint("10.0.0.2", "n2"))))
        assert (found[CLUSTER_IP].pool, texts(found[CLUSTER_IP].backends)) == (Pool.LOCAL, ["10.0.0.1:8080"])
        for name in EXTERNALS:
            assert (found[name].pool, len(found[name].backends)) == (Pool.CLUSTER, 2)

    def test_there_is_no_fallback(self) -> None:
        found = specs(plan(self.SERVICE, endpoint_slice(endpoint("10.0.0.2", "n2"))))
        assert (found[CLUSTER_IP].backends, found[CLUSTER_IP].on_empty) == ((), OnEmpty.DROP)

    def test_both_policies_at_once(self) -> None:
        service = replace(self.SERVICE, external_local=True)
        found = specs(plan(service, endpoint_slice(endpoint("10.0.0.2", "n2"))))
        pools = {name: spec.pool for name, spec in found.items()}
        inside = {f"{name}/internal" for name in EXTERNALS}
        assert {name for name, pool in pools.items() if pool is Pool.CLUSTER} == inside


def test_rule_11_no_endpoint_anywhere_is_a_rejection() -> None:
    for service in (OPEN, replace(OPEN, internal_local=True), replace(OPEN, external_local=True)):
        for item in ([], [endpoint_slice()], [endpoint_slice(unready("10.0.0.1"), dead("10.0.0.2"))]):
            found = specs(plan(service, *item))
            assert {(spec.backends, spec.on_empty) for spec in found.values()} == {((), OnEmpty.REJECT)}


def test_rule_13_source_ranges_bind_load_balancers_alone() -> None:
    ranges = (ipaddress.ip_network("203.0.113.0/24"), ipaddress.ip_network("2001:db8::/32"))
    for external_local in (False, True):
        service = replace(OPEN, source_ranges=ranges, external_local=external_local)
        for name, spec in specs(plan(service)).items():
            assert spec.source_ranges == (ranges if name.startswith(LOAD_BALANCER) else ())


@pytest.mark.parametrize(("text", "admitted"), [("203.0.113.0/24", True), ("198.51.100.0/24", False)])
def test_rule_13_a_range_that_contains_the_node_admits_it(text: str, admitted: bool) -> None:
    node = replace(NODE, primary=(parse_address("203.0.113.9"),))
    service = replace(OPEN, source_ranges=(ipaddress.ip_network(text),))
    for name, spec in specs(plan(service, node=node)).items():
        assert spec.admits_node == (admitted and name.startswith(LOAD_BALANCER))


def test_rule_14_a_node_port_stands_for_all_addresses_of_each_family() -> None:
    service = replace(OPEN, cluster_ips=(*OPEN.cluster_ips, parse_address("fd30::1")))
    assert {"0.0.0.0:30080", "[::]:30080"} <= specs(plan(service)).keys()
    single = replace(OPEN, cluster_ips=(parse_address("fd30::1"),))
    assert {name for name in specs(plan(single)) if "30080" in name} == {"[::]:30080"}


def test_rule_15_affinity_and_scheduler_hold_for_all_frontends() -> None:
    service = replace(OPEN, external_local=True, affinity_timeout=10800, scheduler=Scheduler.MAGLEV)
    found = specs(plan(service))
    assert {(spec.affinity_timeout, spec.scheduler) for spec in found.values()} == {(10800, Scheduler.MAGLEV)}
    assert len({spec.service_port for spec in found.values()}) == 1


class TestRule16Draining:
    def test_what_serves_and_is_not_chosen(self) -> None:
        items = [
            endpoint("10.0.0.1"),
            draining("10.0.0.3"),
            draining("10.0.0.2"),
            dead("10.0.0.4"),
            unready("10.0.0.5"),
        ]
        spec = specs(plan(PLAIN, endpoint_slice(*items)))[CLUSTER_IP]
        assert texts(spec.backends) == ["10.0.0.1:8080"]
        assert texts(spec.draining) == ["10.0.0.2:8080", "10.0.0.3:8080"]

    def test_what_is_chosen_for_want_of_a_better_one_is_not_draining(self) -> None:
        spec = specs(plan(PLAIN, endpoint_slice(draining("10.0.0.1"))))[CLUSTER_IP]
        assert (texts(spec.backends), spec.draining) == (["10.0.0.1:8080"], ())

    def test_what_does_not_serve_keeps_no_flows(self) -> None:
        broken = endpoint("10.0.0.1", "n2", ready=True, serving=False)
        spec = specs(plan(replace(PLAIN, internal_local=True), endpoint_slice(broken)))[CLUSTER_IP]
        assert (spec.backends, spec.draining) == ((), ())

    def test_flows_outlive_a_hint_and_a_policy(self) -> None:
        items = [hinted("10.0.0.1", "east", where="n1"), hinted("10.0.0.2", "west")]
        spec = specs(plan(PLAIN, endpoint_slice(*items)))[CLUSTER_IP]
        assert (texts(spec.backends), texts(spec.draining)) == (["10.0.0.1:8080"], ["10.0.0.2:8080"])
        plain = endpoint_slice(endpoint("10.0.0.1"), endpoint("10.0.0.2", "n2"))
        spec = specs(plan(replace(PLAIN, internal_local=True), plain))[CLUSTER_IP]
        assert (texts(spec.backends), texts(spec.draining)) == (["10.0.0.1:8080"], ["10.0.0.2:8080"])


class TestRule17HealthCheck:
    SERVICE = replace(OPEN, external_local=True, health_check_node_port=32000)

    @pytest.mark.parametrize(
        ("endpoints", "count"),
        [
            ([], 0),
            ([endpoint("10.0.0.1", "n2")], 0),
            ([endpoint("10.0.0.1"), endpoint("10.0.0.2"), endpoint("10.0.0.3", "n2")], 2),
            ([draining("10.0.0.1"), unready("10.0.0.2")], 0),
            ([endpoint("10.0.0.1"), draining("10.0.0.2")], 1),
        ],
    )
    def test_local_ready_endpoints(self, endpoints: list[Endpoint], count: int) -> None:
        found = plan(self.SERVICE, endpoint_slice(*endpoints))
        assert found.health_check == HealthCheck(WEB, 32000, count)

    def test_an_address_counts_once(self) -> None:
        ports = (ServicePort("http", TCP, 80), ServicePort("dns", UDP, 53))
        slices = [
            endpoint_slice(endpoint("10.0.0.1")),
            endpoint_slice(endpoint("10.0.0.1"), name="web-2", port_name="dns", protocol=UDP),
        ]
        found = plan(replace(self.SERVICE, ports=ports), *slices)
        assert found.health_check == HealthCheck(WEB, 32000, 1)

    def test_addresses_of_all_ports_and_families_count(self) -> None:
        ports = (ServicePort("http", TCP, 80), ServicePort("dns", UDP, 53))
        slices = [
            endpoint_slice(endpoint("10.0.0.1")),
            endpoint_slice(endpoint("10.0.0.2"), name="web-2", port_name="dns", protocol=UDP),
            endpoint_slice(endpoint("fd00::1"), name="web-3", family=6),
        ]
        service = replace(self.SERVICE, ports=ports, cluster_ips=(*PLAIN.cluster_ips, parse_address("fd30::1")))
        assert plan(service, *slices).health_check == HealthCheck(WEB, 32000, 3)

    @pytest.mark.parametrize("change", [{"external_local": False}, {"type": "NodePort"}, {"health_check_node_port": 0}])
    def test_only_load_balancers_with_a_local_policy_have_one(self, change: dict[str, object]) -> None:
        assert plan(replace(self.SERVICE, **change)).health_check is None


class TestRule18Families:
    SIX: Address = parse_address("fd30::1")
    SLICES = (endpoint_slice(endpoint("10.0.0.1")), endpoint_slice(endpoint("fd00::1"), name="web-2", family=6))

    def test_each_family_has_its_own_endpoints(self) -> None:
        found = specs(plan(replace(PLAIN, cluster_ips=(*PLAIN.cluster_ips, self.SIX)), *self.SLICES))
        assert texts(found[CLUSTER_IP].backends) == ["10.0.0.1:8080"]
        assert texts(found["[fd30::1]:80"].backends) == ["[fd00::1]:8080"]

    def test_one_family_may_be_without(self) -> None:
        found = specs(plan(replace(PLAIN, cluster_ips=(*PLAIN.cluster_ips, self.SIX)), self.SLICES[0]))
        assert found["[fd30::1]:80"].backends == ()

    def test_an_address_of_a_family_that_the_service_lacks_is_skipped(self) -> None:
        service = replace(OPEN, external_ips=(parse_address("2001:db8::1"),), load_balancer_ips=())
        assert specs(plan(service, *self.SLICES)).keys() == {CLUSTER_IP, NODE_PORT}

    def test_without_a_cluster_ip_the_other_addresses_tell(self) -> None:
        service = replace(OPEN, cluster_ips=(), external_ips=(parse_address("2001:db8::1"),), load_balancer_ips=())
        assert specs(plan(service, *self.SLICES)).keys() == {"[2001:db8::1]:80", "[::]:30080"}

    def test_the_local_detector_is_each_familys_own(self) -> None:
        found = specs(plan(replace(PLAIN, cluster_ips=(*PLAIN.cluster_ips, self.SIX)), node=DETECTING))
        assert found[CLUSTER_IP].masquerade is Masquerade.NOT_LOCAL
        assert found["[fd30::1]:80"].masquerade is Masquerade.NEVER


def test_ports_of_all_protocols_are_planned() -> None:
    ports = (ServicePort("a", TCP, 53), ServicePort("b", UDP, 53), ServicePort("c", SCTP, 53))
    slices = [endpoint_slice(endpoint("10.0.0.1"), name=p.name, port_name=p.name, protocol=p.protocol) for p in ports]
    found = plan(replace(PLAIN, ports=ports), *slices).frontends
    assert {frontend.protocol for frontend in found} == set(Protocol)
    for frontend, spec in found.items():
        assert [backend.protocol for backend in spec.backends] == [frontend.protocol]


def test_the_service_says_which_proxier_serves_it() -> None:
    assert plan(PLAIN).proxy_mode is None
    assert plan(replace(PLAIN, proxy_mode="iptables")).proxy_mode == "iptables"


def test_scopes_are_of_one_place() -> None:
    found = plan(replace(OPEN, external_local=True)).frontends
    inside = [frontend for frontend in found if frontend.scope is Scope.INTERNAL]
    assert len(inside) == 3
    for frontend in inside:
        assert found[Frontend(frontend.address, frontend.port, frontend.protocol)].scoped
