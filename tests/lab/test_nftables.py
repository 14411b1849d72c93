"""The nftables proxier on a real kernel: what is written is read back, what is refused harms nobody."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfproxy.api import Plan, plan_manifests
from bpfproxy.config import Settings
from bpfproxy.diff import diff
from bpfproxy.errors import DatapathError
from bpfproxy.lab import cases, manifests
from bpfproxy.lab.layout import CLUSTER_CIDRS
from bpfproxy.model.address import parse_address
from bpfproxy.model.service import Endpoint, EndpointPort, EndpointSlice, ObjectName, Protocol, ServicePort
from bpfproxy.netfilter import nft
from bpfproxy.plan import NodeConfig, node_config, plan_node, plan_service
from bpfproxy.proxiers.nftables import lifecycle
from bpfproxy.proxiers.nftables.proxier import NftablesProxier
from bpfproxy.proxiers.nftables.rows import (
    ChainKey,
    ChainRow,
    ElementKey,
    ElementRow,
    Key,
    Row,
    SetKey,
    SetRow,
)
from tests.lab.histories import changes_and_restarts
from tests.lab.nftables import (
    NODE_PLAN,
    NODE_ROWS,
    RENDERER,
    UNHURRIED,
    bring_to,
    command,
    new,
    rows_of_services,
    service,
)
from tests.unit import strategies


def lab_plan(directory: Path, *, detector: bool = True) -> tuple[Plan, Settings]:
    manifests.write(directory, "nodes", manifests.nodes())
    for case in cases.load():
        manifests.write(directory, case.name, manifests.objects(case))
    chosen = Settings(
        manifests=(directory,),
        node_name="node1",
        cluster_cidr=CLUSTER_CIDRS if detector else (),
        service_cidr=("10.96.0.0/16", "10.98.0.0/16", "10.99.0.0/16", "fd00:10:96::/64"),
    )
    return plan_manifests(chosen), chosen


@pytest.mark.parametrize("detector", [True, False])
@pytest.mark.parametrize("batch", [3000, 50])
def test_what_is_written_is_read(namespace: str, tmp_path: Path, detector: bool, batch: int) -> None:
    plan, chosen = lab_plan(tmp_path, detector=detector)
    renderer = lifecycle.renderer(chosen)
    wanted = dict(renderer.render_node(plan.node))
    for one in plan.services.values():
        wanted |= renderer.render(one)
    bring_to(NftablesProxier(renderer, batch=batch), wanted)
    found = NftablesProxier(renderer).read()
    assert {key: row for key, row in found.items() if wanted.get(key) != row} == {}
    assert found == wanted
    assert bring_to(NftablesProxier(renderer), wanted) == []
    bring_to(NftablesProxier(renderer, batch=batch), {})
    assert new().read() == {}


def test_other_settings_are_written_and_read(namespace: str) -> None:
    """One after the other in one table."""
    for chosen in (
        Settings(),
        Settings(nodeport_addresses=("0.0.0.0/0", "::/0"), snat_ports="1025-65535", masquerade_bit=31),
        Settings(nodeport_addresses=("0.0.0.0/0", "fd02::/64"), service_cidr=("10.96.0.0/12", "10.112.0.0/12")),
        Settings(service_cidr=("10.96.0.0/12", "10.128.0.0/12", "fd30::/108"), snat_ports="1024-2000"),
        Settings(),
    ):
        renderer = lifecycle.renderer(chosen)
        plan = plan_node(node_config(chosen, "n1", NODE_PLAN.node_port_addresses))
        wanted = dict(renderer.render_node(plan))
        bring_to(NftablesProxier(renderer), wanted)
        assert NftablesProxier(renderer).read() == wanted


@pytest.mark.parametrize(
    "texts",
    [
        ["10.0.0.0/8"],
        ["10.1.0.0/16", "10.2.0.0/15", "10.64.0.0/16"],
        ["192.0.2.1/32", "192.0.2.2/32", "192.0.2.4/31", "198.51.100.0/24"],
        ["0.0.0.0/1", "128.0.0.0/2"],
        ["255.255.255.255/32", "0.0.0.0/32"],
        ["2001:db8::/33", "2001:db8:8000::/34", "::1/128"],
    ],
)
def test_source_ranges_are_read(namespace: str, texts: list[str]) -> None:
    ranges = tuple(ip_network(text) for text in texts)
    vips = (parse_address("198.51.100.1"), parse_address("2001:db8:1::1"))
    both = (parse_address("172.30.0.1"), parse_address("fd30::1"))
    one = service("a", cluster_ips=both, type="LoadBalancer", load_balancer_ips=vips, source_ranges=ranges)
    wanted = rows_of_services(one)
    assert any(isinstance(key, ChainKey) and key.name.startswith("firewall-") and "/" in key.name for key in wanted)
    bring_to(new(), wanted)
    assert new().read() == wanted


def test_a_change_costs_what_changed(namespace: str) -> None:
    proxier = new()
    bring_to(proxier, rows_of_services(service("a"), service("b", "172.30.0.2")))
    wanted = rows_of_services(service("a"), service("b", "172.30.0.3"))
    assert {op.key.element.split()[0] for op in bring_to(new(), wanted)} == {"172.30.0.2", "172.30.0.3"}
    assert new().read() == wanted


def test_nothing_is_listed_unless_somebody_has_written(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proxier = new()
    wanted = rows_of_services(service("a"))
    bring_to(proxier, wanted)
    listed: list[str] = []
    list_table = nft.list_table

    def noted(family: str, table: str) -> list[nft.Object] | None:
        listed.append(family)
        return list_table(family, table)

    monkeypatch.setattr(nft, "list_table", noted)
    assert proxier.read() == wanted
    assert listed == []
    command("add", "table", "inet", "other")
    assert proxier.read() == wanted
    assert listed == ["ip", "ip6"]
    bring_to(proxier, NODE_ROWS)
    assert proxier.read() == NODE_ROWS
    assert listed == ["ip", "ip6"]


def test_a_listing_that_failed_is_not_taken_for_one(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = rows_of_services(service("a"))
    bring_to(new(), wanted)
    proxier = new()
    list_table = nft.list_table

    def fail(family: str, table: str) -> list[nft.Object] | None:
        if family == "ip6":
            raise DatapathError("not now")
        return list_table(family, table)

    with monkeypatch.context() as patch:
        patch.setattr(nft, "list_table", fail)
        with pytest.raises(DatapathError):
            proxier.read()
    assert proxier.read() == wanted


@given(data=st.data(), batch=st.sampled_from([3000, 3]))
@settings(max_examples=25, deadline=None, suppress_health_check=UNHURRIED)
def test_changes_and_restarts(namespace: str, data: st.DataObject, batch: int) -> None:
    changes_and_restarts("nftables", lambda: new(batch), RENDERER, NODE_PLAN, data)
    for table in ("ip", "ip6"):
        nft.delete_table(table, "kube-proxy")


# ---- refusals ----------------------------------------------------------------------------------------------------

GONE_ASTRAY = ChainKey(4, "service-astray")
BAD = [
    (GONE_ASTRAY, ChainRow(("goto nowhere",))),
    (ChainKey(6, "service-words"), ChainRow(("these are no words of nft",))),
    (ElementKey(4, "service-ips", "10.0.0.9 . tcp . 80"), ElementRow("goto service-astray")),
    (ElementKey(4, "no-such-set", "10.0.0.9"), ElementRow()),
    (SetKey(4, "service-ips"), SetRow("ipv4_addr", verdicts=True)),
]


@pytest.mark.parametrize("chosen", [[0], [1], [2], [3], [4], [0, 2], [0, 1, 2, 3, 4]])
def test_what_is_refused_holds_up_nobody(namespace: str, chosen: list[int]) -> None:
    bring_to(new(), NODE_ROWS)
    wanted = rows_of_services(*(service(f"s{n}", f"172.30.0.{n}") for n in range(1, 9)))
    bad = dict(BAD[number] for number in chosen)
    proxier = new()
    ops = diff(proxier.read(), wanted | bad, proxier.phase)
    failures = proxier.apply(ops)
    assert {failure.op.key for failure in failures} == bad.keys()
    assert all(failure.reason.startswith("nft: ") and "\n" not in failure.reason for failure in failures)
    assert proxier.read() == wanted
    assert new().read() == wanted


def test_doing_it_again_does_nothing(namespace: str) -> None:
    proxier = new()
    wanted = rows_of_services(service("a"))
    ops = diff({}, wanted, proxier.phase)
    for _ in range(2):
        assert proxier.apply(ops) == []
        assert new().read() == wanted
    deletes = diff(wanted, {}, proxier.phase)
    for _ in range(2):
        assert proxier.apply(deletes) == []
        assert new().read() == {}


# ---- sets --------------------------------------------------------------------------------------------------------


def test_affinities_outlive_changes_and_another_timeout(namespace: str) -> None:
    def rows(*ends: int, timeout: int) -> dict[Key, Row]:
        endpoints = tuple(Endpoint(strategies.PODS[4][n]) for n in ends)
        ports = (EndpointPort("http", Protocol.TCP, 8080),)
        item = EndpointSlice(ObjectName("ns", "s"), ObjectName("ns", "a"), 4, ports, endpoints)
        plan = plan_service(service("a", affinity_timeout=timeout), [item], NodeConfig("n1"))
        assert plan is not None
        return {**NODE_ROWS, **RENDERER.render(plan)}

    proxier = new()
    bring_to(proxier, rows(0, 1, timeout=100))
    [kept, other] = sorted(key.name for key in proxier.read() if isinstance(key, SetKey) and "affinity" in key.name)
    command("add", "element", "ip", "kube-proxy", kept, "{ 192.0.2.99 }")
    wanted = rows(0 if kept.endswith("10.0.0.1/8080") else 1, timeout=3000)
    ops = bring_to(new(), wanted)
    assert SetKey(4, other) in {op.key for op in ops if op.row is None}
    assert new().read() == wanted
    assert "192.0.2.99" in command("list", "set", "ip", "kube-proxy", kept)
    assert "timeout 50m" in command("list", "set", "ip", "kube-proxy", kept)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_one_cluster_ip_of_two_services(namespace: str, order: Sequence[str]) -> None:
    """Kubernetes forbids it, manifests do not: the address is the Services' until the last of them is gone."""
    both = {name: service(name, ports=(ServicePort("http", Protocol.TCP, ord(name)),)) for name in order}
    first, second = order
    proxier = new()
    bring_to(proxier, rows_of_services(both[first]))
    bring_to(proxier, rows_of_services(*both.values()))
    bring_to(proxier, rows_of_services(both[second]))
    assert new().read() == rows_of_services(both[second])
    bring_to(proxier, rows_of_services(*both.values()))
    bring_to(new(), rows_of_services(both[first]))
    assert new().read() == rows_of_services(both[first])
    bring_to(new(), NODE_ROWS)
    assert new().read() == NODE_ROWS
