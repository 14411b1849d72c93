"""Rules 1 to 6 of the semantics, one by one: which endpoints a Service has."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bpfproxy.model.address import parse_address
from bpfproxy.model.frontend import (
    Backend,
)
from bpfproxy.model.service import (
    ServicePort,
)
from bpfproxy.plan import NodeConfig, plan_service
from tests.unit.planning import (
    CLUSTER_IP,
    NODE,
    OPEN,
    PLAIN,
    TCP,
    UDP,
    cluster_pool,
    dead,
    draining,
    endpoint,
    endpoint_slice,
    hinted,
    local_pool,
    plan,
    specs,
    texts,
    unready,
)


class TestRule1ClusterSet:
    def test_ready_endpoints_wherever_they_are(self) -> None:
        assert cluster_pool(endpoint("10.0.0.2", "n2"), endpoint("10.0.0.1"), unready("10.0.0.3")) == ["1", "2"]

    def test_terminating_ones_only_if_none_is_ready(self) -> None:
        assert cluster_pool(endpoint("10.0.0.1"), draining("10.0.0.2")) == ["1"]
        assert cluster_pool(unready("10.0.0.1"), draining("10.0.0.2"), draining("10.0.0.3", "n2")) == ["2", "3"]

    def test_terminating_ones_must_still_serve(self) -> None:
        assert cluster_pool(dead("10.0.0.1"), draining("10.0.0.2")) == ["2"]
        assert cluster_pool(dead("10.0.0.1")) == []

    def test_serving_is_not_enough(self) -> None:
        assert cluster_pool(endpoint("10.0.0.1", ready=False, serving=True)) == []

    def test_topology_is_ignored_for_terminating_ones(self) -> None:
        leaving = endpoint("10.0.0.1", "n2", ready=False, terminating=True, zones=("west",))
        assert cluster_pool(leaving) == ["1"]


class TestRule2LocalSet:
    def test_ready_ones_of_this_node(self) -> None:
        assert local_pool(endpoint("10.0.0.1"), endpoint("10.0.0.2", "n2"), draining("10.0.0.3")) == ["1"]

    def test_ready_ones_elsewhere_do_not_suppress_local_terminating_ones(self) -> None:
        assert local_pool(draining("10.0.0.1"), endpoint("10.0.0.2", "n2")) == ["1"]

    def test_terminating_ones_elsewhere_do_not_count(self) -> None:
        assert local_pool(draining("10.0.0.1", "n2"), unready("10.0.0.2")) == []

    def test_without_a_node_an_endpoint_is_nowhere(self) -> None:
        service = replace(PLAIN, internal_local=True)
        found = specs(plan(service, endpoint_slice(endpoint("10.0.0.1", "")), node=NodeConfig("")))[CLUSTER_IP]
        assert found.backends == ()


class TestRule3Hints:
    def test_zone_hints_filter(self) -> None:
        assert cluster_pool(
            hinted("10.0.0.1", "east"), hinted("10.0.0.2", "west"), hinted("10.0.0.3", "west east")
        ) == [
            "1",
            "3",
        ]

    def test_one_ready_endpoint_without_a_hint_switches_them_off(self) -> None:
        assert cluster_pool(hinted("10.0.0.1", "east"), hinted("10.0.0.2", "west"), hinted("10.0.0.3")) == [
            "1",
            "2",
            "3",
        ]

    def test_an_endpoint_that_is_not_ready_needs_no_hint(self) -> None:
        assert cluster_pool(hinted("10.0.0.1", "east"), hinted("10.0.0.2", "west"), unready("10.0.0.3")) == ["1"]

    def test_no_match_switches_them_off(self) -> None:
        assert cluster_pool(hinted("10.0.0.1", "west"), hinted("10.0.0.2", "west")) == ["1", "2"]

    def test_a_node_without_a_zone_matches_none(self) -> None:
        assert cluster_pool(hinted("10.0.0.1", "east"), hinted("10.0.0.2", "west"), node=NodeConfig("n1")) == ["1", "2"]

    def test_node_hints_come_first(self) -> None:
        first, second = hinted("10.0.0.1", "west", "n1"), hinted("10.0.0.2", "east", "n2")
        assert cluster_pool(first, second) == ["1"]

    def test_node_hints_may_stand_alone(self) -> None:
        assert cluster_pool(hinted("10.0.0.1", nodes="n1"), hinted("10.0.0.2", nodes="n2")) == ["1"]

    def test_zone_hints_count_where_node_hints_do_not(self) -> None:
        first, second = hinted("10.0.0.1", "west", "n2"), hinted("10.0.0.2", "east", "n3")
        assert cluster_pool(first, second) == ["2"]
        assert cluster_pool(hinted("10.0.0.1", "west", "n1"), hinted("10.0.0.2", "east")) == ["2"]

    def test_they_never_filter_the_local_set(self) -> None:
        assert local_pool(hinted("10.0.0.1", "west", "n2", where="n1"), hinted("10.0.0.2", "east", "n1")) == ["1"]


class TestRule4Endpoints:
    def test_a_wrong_family_is_skipped(self) -> None:
        assert cluster_pool(endpoint("10.0.0.1"), endpoint("fd00::1")) == ["1"]

    def test_ports_match_by_name_and_protocol(self) -> None:
        slices = [
            endpoint_slice(endpoint("10.0.0.1")),
            endpoint_slice(endpoint("10.0.0.2"), name="web-2", port_name="metrics"),
            endpoint_slice(endpoint("10.0.0.3"), name="web-3", protocol=UDP),
            endpoint_slice(endpoint("10.0.0.4"), name="web-4", port_name=""),
        ]
        assert texts(specs(plan(PLAIN, *slices))[CLUSTER_IP].backends) == ["10.0.0.1:8080"]
        unnamed = replace(PLAIN, ports=(ServicePort("", TCP, 80),))
        assert texts(specs(plan(unnamed, *slices))[CLUSTER_IP].backends) == ["10.0.0.4:8080"]

    def test_a_service_port_without_a_slice_port_has_no_endpoints(self) -> None:
        item = replace(endpoint_slice(endpoint("10.0.0.1")), ports=())
        assert specs(plan(PLAIN, item))[CLUSTER_IP].backends == ()

    def test_duplicates_collapse(self) -> None:
        assert cluster_pool(endpoint("10.0.0.1"), endpoint("10.0.0.1")) == ["1"]

    @pytest.mark.parametrize("order", [1, -1])
    def test_a_local_duplicate_is_preferred(self, order: int) -> None:
        twins = [endpoint("10.0.0.1", "n2"), endpoint("10.0.0.1", "n1")]
        found = specs(plan(PLAIN, endpoint_slice(*twins[::order])))[CLUSTER_IP]
        assert found.backends == (Backend(parse_address("10.0.0.1"), 8080, TCP, local=True),)

    def test_the_local_duplicates_condition_counts(self) -> None:
        assert cluster_pool(unready("10.0.0.1", "n1"), endpoint("10.0.0.1", "n2"), endpoint("10.0.0.2")) == ["2"]

    def test_the_first_of_equal_duplicates_counts(self) -> None:
        assert cluster_pool(unready("10.0.0.1"), endpoint("10.0.0.1")) == []
        assert cluster_pool(endpoint("10.0.0.1"), unready("10.0.0.1")) == ["1"]

    def test_one_address_with_two_ports_is_two_endpoints(self) -> None:
        slices = [endpoint_slice(endpoint("10.0.0.1")), endpoint_slice(endpoint("10.0.0.1"), name="web-2", port=9090)]
        assert texts(specs(plan(PLAIN, *slices))[CLUSTER_IP].backends) == ["10.0.0.1:8080", "10.0.0.1:9090"]


def test_rule_5_slices_are_merged_and_sorted() -> None:
    slices = [
        endpoint_slice(endpoint("10.0.0.3"), endpoint("10.0.0.1")),
        endpoint_slice(endpoint("10.0.0.4", "n2"), endpoint("10.0.0.2"), name="web-2"),
    ]
    found = specs(plan(PLAIN, *slices))[CLUSTER_IP]
    assert texts(found.backends) == ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080"]


def test_rule_5_an_endpoint_may_be_in_two_slices() -> None:
    slices = [
        endpoint_slice(endpoint("10.0.0.3"), endpoint("10.0.0.1")),
        endpoint_slice(endpoint("10.0.0.2"), endpoint("10.0.0.1"), name="web-2"),
    ]
    found = specs(plan(PLAIN, *slices))[CLUSTER_IP]
    assert texts(found.backends) == ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"]


class TestRule6Ignored:
    @pytest.mark.parametrize(
        "change", [{"headless": True, "cluster_ips": ()}, {"type": "ExternalName"}, {"ignored": True}, {"ports": ()}]
    )
    def test_a_service_that_is_not_ours_has_no_plan(self, change: dict[str, object]) -> None:
        assert plan_service(replace(OPEN, **change), [endpoint_slice(endpoint("10.0.0.1"))], NODE) is None

    def test_nor_has_one_that_is_not_there(self) -> None:
        assert plan_service(None, [endpoint_slice(endpoint("10.0.0.1"))], NODE) is None

    def test_an_ignored_slice_has_no_endpoints(self) -> None:
        item = replace(endpoint_slice(endpoint("10.0.0.1")), ignored=True)
        assert specs(plan(PLAIN, item))[CLUSTER_IP].backends == ()
