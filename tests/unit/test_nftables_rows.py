"""The rows of the nftables proxier between renderer and kernel: their order, how nft's JSON is read, UDP flows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfproxy.diff import diff
from bpfproxy.model.address import ANY4, Family, parse_address
from bpfproxy.model.frontend import ServicePlan
from bpfproxy.model.service import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectName,
    Protocol,
    Service,
    ServicePort,
)
from bpfproxy.plan import NodeConfig, PlanIndex, plan_node, plan_service
from bpfproxy.proxiers.nftables.flows import UdpFlows
from bpfproxy.proxiers.nftables.parse import rows_of
from bpfproxy.proxiers.nftables.render import NftablesRenderer
from bpfproxy.proxiers.nftables.rows import ChainKey, ChainRow, ElementKey, ElementRow, Hook, Key, Row, SetKey, SetRow
from tests.unit import strategies

RENDERER = NftablesRenderer(cluster_networks=strategies.CIDRS)
NODE = NodeConfig("n1", cluster_cidrs=tuple(strategies.CIDRS))
NAME = re.compile(r"(?:goto|jump|@)\s?(\S+)")


# ---- order -------------------------------------------------------------------------------------------------------


@st.composite
def worlds(draw: st.DrawFn) -> dict[Key, Row]:
    """The rows of a node with some Services, or of none."""
    if draw(st.sampled_from([False, False, False, True])):
        return {}
    index = PlanIndex()
    plans: dict[ObjectName, ServicePlan | None] = {}
    for name in strategies.SERVICES[: draw(st.integers(0, 2))]:
        plans[name] = plan_service(draw(strategies.services(st.just(name))), draw(strategies.slice_lists(name)), NODE)
    index.update(plans)
    rows = dict(RENDERER.render_node(plan_node(NODE)))
    for plan in index.plans.values():
        rows |= RENDERER.render(plan)
    return rows


@given(worlds(), worlds())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_after_any_part_of_a_sync_nothing_leads_astray(before: dict[Key, Row], after: dict[Key, Row]) -> None:
    state = dict(before)
    for op in diff(before, after, RENDERER.phase):
        if op.row is None:
            del state[op.key]
        else:
            state[op.key] = op.row
        assert not dangling(state)
        assert not unguarded(state, before, after)
    assert state == after


def dangling(rows: dict[Key, Row]) -> set[tuple[Family, str]]:
    """Chains and sets that are named and are not there."""
    there = {(key.family, key.name) for key in rows if isinstance(key, ChainKey | SetKey)}
    there |= {(key.family, key.set) for key in rows if isinstance(key, ElementKey)} & there
    return {(key.family, name) for key, row in rows.items() for name in names_in(key, row)} - there


def names_in(key: Key, row: Row) -> Iterator[str]:
    match key, row:
        case ElementKey(), ElementRow():
            yield key.set
            yield from NAME.findall(row.verdict)
        case ChainKey(), ChainRow():
            for rule in row.rules:
                yield from NAME.findall(re.sub(r' comment ".*"', "", rule))


def unguarded(rows: dict[Key, Row], *ends: dict[Key, Row]) -> list[Key]:
    """VIPs that are dispatched without the firewall that they have before and after."""
    found: list[Key] = []
    for key in rows:
        if isinstance(key, ElementKey) and key.set == "service-ips":
            firewall = ElementKey(key.family, "firewall-ips", key.element)
            if firewall not in rows and all(firewall in end for end in ends if key in end):
                found.append(key)
    return found


# ---- reading -----------------------------------------------------------------------------------------------------


def rule(*expressions: dict[str, Any], comment: str | None = None) -> str:
    """How a chain of one rule is read."""
    fields: dict[str, Any] = {"chain": "c", "expr": list(expressions)}
    if comment:
        fields["comment"] = comment
    rows = rows_of(4, [{"chain": {"name": "c"}}, {"rule": fields}])
    row = rows[ChainKey(4, "c")]
    assert isinstance(row, ChainRow)
    return row.rules[0]


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


SADDR = {"payload": {"protocol": "ip", "field": "saddr"}}


def prefix(address: str, length: int) -> dict[str, Any]:
    return {"prefix": {"addr": address, "len": length}}


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        # What versions of nft write differently.
        (match({"fib": {"result": "type", "flags": "saddr"}}, "local"), "fib saddr type local"),
        (match({"fib": {"result": "type", "flags": ["saddr"]}}, "local"), "fib saddr type local"),
        ({"dnat": {"addr": "10.0.0.1", "port": 80}}, "dnat to 10.0.0.1:80"),
        ({"dnat": {"family": "ip", "addr": "10.0.0.1", "port": 80}}, "dnat to 10.0.0.1:80"),
        ({"masquerade": {"flags": "fully-random"}}, "masquerade fully-random"),
        ({"masquerade": {"flags": ["fully-random"]}}, "masquerade fully-random"),
        ({"masquerade": {"port": 1024, "flags": "fully-random"}}, "masquerade to :1024 fully-random"),
        (match({"ct": {"key": "state"}}, "new", "in"), "ct state new"),
        (match(SADDR, {"set": ["10.0.0.1"]}), "ip saddr 10.0.0.1"),
        # What the kernel merges or splits.
        (match(SADDR, {"set": [{"range": ["10.0.0.0", "10.0.2.255"]}]}), "ip saddr { 10.0.0.0/23, 10.0.2.0/24 }"),
        (
            match(SADDR, {"set": [prefix("10.0.2.0", 24), prefix("10.0.0.0", 23)]}),
            "ip saddr { 10.0.0.0/23, 10.0.2.0/24 }",
        ),
        (match(SADDR, {"set": [prefix("10.0.0.0", 24), prefix("10.0.1.0", 24)]}, "!="), "ip saddr != 10.0.0.0/23"),
    ],
)
def test_one_meaning_has_one_text(expression: dict[str, Any], text: str) -> None:
    assert rule(expression) == text


@pytest.mark.parametrize(
    "expression",
    [
        {"dnat": {"addr": "10.0.0.1", "port": 80, "flags": "persistent"}},
        {"dnat": {"addr": "10.0.0.1"}},
        {"masquerade": {"addr": "10.0.0.1", "flags": "fully-random"}},
        {"masquerade": None},
        {"reject": {"type": "tcp reset"}},
        {"counter": {"packets": 0, "bytes": 0}},
        {"mangle": {"key": {"ct": {"key": "mark"}}, "value": 1}},
        {"vmap": {"key": {"numgen": {"mode": "random", "mod": 2, "offset": 1}}, "data": {"set": []}}},
        {"xt": {"type": "match", "name": "comment"}},
        {"drop": None, "accept": None},
        match({"ct": {"key": "mark", "dir": "reply"}}, 5),
    ],
)
def test_what_nobody_writes_is_like_nothing_that_somebody_writes(expression: dict[str, Any]) -> None:
    assert "{" in rule(expression)
    assert rule(expression, comment="c") != rule(expression)


def test_sets_and_chains_are_read() -> None:
    concat = {"concat": ["10.0.0.1", "tcp", 80]}
    rows = rows_of(
        4,
        [
            {"metainfo": {"version": "1.0.6"}},
            {"table": {"name": "kube-proxy"}},
            {"set": {"name": "affinity-x", "type": "ipv4_addr", "timeout": 60, "elem": ["10.0.0.9"]}},
            {
                "map": {
                    "name": "service-ips",
                    "type": ["ipv4_addr", "inet_proto", "inet_service"],
                    "map": "verdict",
                    "comment": "about",
                    "elem": [
                        [concat, {"goto": {"target": "x"}}],
                        [{"elem": {"val": "10.0.0.2", "comment": "it"}}, {"drop": None}],
                    ],
                }
            },
            {
                "set": {
                    "name": "cluster-ips",
                    "type": "ipv4_addr",
                    "elem": [{"elem": {"val": "10.0.0.3", "comment": "n/a n/b"}}],
                }
            },
            {"chain": {"name": "in", "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
        ],
    )
    assert rows == {
        SetKey(4, "affinity-x"): SetRow("ipv4_addr", timeout=60),
        SetKey(4, "service-ips"): SetRow("ipv4_addr . inet_proto . inet_service", verdicts=True, comment="about"),
        ElementKey(4, "service-ips", "10.0.0.1 . tcp . 80"): ElementRow("goto x"),
        ElementKey(4, "service-ips", "10.0.0.2"): ElementRow("drop", "it"),
        SetKey(4, "cluster-ips"): SetRow("ipv4_addr"),
        ElementKey(4, "cluster-ips", "10.0.0.3", "n/a"): ElementRow(),
        ElementKey(4, "cluster-ips", "10.0.0.3", "n/b"): ElementRow(),
        ChainKey(4, "in"): ChainRow((), Hook("filter", "input", 0, "drop")),
    }


# ---- UDP flows (rule 16) -----------------------------------------------------------------------------------------

VIP, VIP6 = (parse_address("172.30.0.1"), 53), (parse_address("fd30::1"), 53)
A, B, C = ((parse_address(f"10.0.0.{n}"), 5353) for n in (1, 2, 3))
SIZES: tuple[tuple[Family, int], ...] = ((4, 4), (6, 16))
A6 = (parse_address("fd00::1"), 5353)
DNS = Service(
    ObjectName("ns", "dns"),
    (ServicePort("dns", Protocol.UDP, 53, 30053), ServicePort("web", Protocol.TCP, 80)),
    type="NodePort",
    cluster_ips=(VIP[0], VIP6[0]),
)


def rows(*endpoints: tuple[bytes, int], leaving: tuple[tuple[bytes, int], ...] = ()) -> dict[Key, Row]:
    """The rows of DNS; those that are `leaving` terminate and still serve."""
    slices = [
        EndpointSlice(
            ObjectName("ns", f"s{bits}"),
            DNS.name,
            family,
            (EndpointPort("dns", Protocol.UDP, 5353), EndpointPort("web", Protocol.TCP, 5353)),
            tuple(
                Endpoint(address, ready=one not in leaving, terminating=one in leaving)  # type: ignore[arg-type]
                for one in (*endpoints, *leaving)
                for address in one[:1]
                if len(address) == bits
            ),
        )
        for family, bits in SIZES
    ]
    plan = plan_service(DNS, slices, NodeConfig("n1"))
    assert plan is not None
    return RENDERER.render(plan)


def suspects(*states: dict[Key, Row]) -> dict[Any, Any]:
    """What the last of the changes gives reason to look at."""
    flows = UdpFlows()
    before: dict[Key, Row] = {}
    for state in states:
        flows.take_suspects()
        for op in diff(before, state, RENDERER.phase):
            flows.note(op.key, op.row)
        before = state
    return flows.take_suspects()


NODE_PORT = (ANY4, 30053)


def both(*serving: Any) -> dict[Any, Any]:
    return {VIP: frozenset(serving), NODE_PORT: frozenset(serving)}


def test_an_endpoint_that_goes_leaves_suspects() -> None:
    assert suspects(rows(A, B), rows(B)) == both(B)


def test_an_endpoint_that_comes_leaves_none() -> None:
    assert suspects(rows(A), rows(A, B)) == {}


def test_an_endpoint_that_terminates_and_serves_keeps_its_flows() -> None:
    assert suspects(rows(A, B), rows(A, leaving=(B,))) == {}
    assert suspects(rows(A, leaving=(B,)), rows(A)) == both(A)


def test_the_last_endpoint_leaves_nobody_to_serve() -> None:
    assert suspects(rows(A), rows()) == both()


def test_a_frontend_that_comes_takes_over_flows_that_nobody_translated() -> None:
    wanted = both(A) | {VIP6: frozenset({A6}), (bytes(16), 30053): frozenset({A6})}
    assert suspects(rows(A, A6)) == wanted


def test_the_first_endpoint_takes_over() -> None:
    assert suspects(rows(), rows(C)) == both(C)


def test_families_are_apart() -> None:
    assert suspects(rows(A, B, A6), rows(A, A6)) == both(A)


def test_what_was_read_is_no_reason() -> None:
    flows = UdpFlows()
    for key, row in rows(A, B).items():
        flows.note(key, row)
    flows.forget_touched()
    assert flows.take_suspects() == {}
    for op in diff(rows(A, B), rows(A), RENDERER.phase):
        flows.note(op.key, op.row)
    assert flows.take_suspects() == both(A)
