"""The userspace proxier on a real kernel: what is written is read back, what others have is left alone."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tried
from hypothesis import strategies as st

from bpfproxy.api import plan_manifests
from bpfproxy.config import Settings
from bpfproxy.diff import diff
from bpfproxy.lab import cases, manifests
from bpfproxy.lab.layout import CLUSTER_CIDRS
from bpfproxy.model.address import parse_address
from bpfproxy.model.frontend import Backend, Frontend, NodePlan, OnEmpty, ServicePortName
from bpfproxy.model.service import ObjectName, Protocol
from bpfproxy.netfilter import nft
from bpfproxy.proxiers.base import Key, Op, Row, Rows
from bpfproxy.proxiers.userspace import lifecycle
from bpfproxy.proxiers.userspace.proxier import UserspaceProxier
from bpfproxy.proxiers.userspace.rows import PortalRow
from tests.lab.histories import changes_and_restarts
from tests.lab.relays import relays

FOREIGN = """
add table ip nat
add chain ip nat PREROUTING { type nat hook prerouting priority -100 ; }
add rule ip nat PREROUTING ip daddr 192.0.2.1 drop
add table inet bpfproxy
add set inet bpfproxy s { type ipv4_addr ; }
add element inet bpfproxy s { 192.0.2.1 }
"""
NODE_PLAN = NodePlan(frozenset({parse_address("192.0.2.7"), parse_address("fd02::7")}))
NAME = ServicePortName(ObjectName("ns", "a"), "http", Protocol.TCP)
BACKENDS = (Backend(parse_address("10.0.0.1"), 80, Protocol.TCP), Backend(parse_address("10.0.0.2"), 80, Protocol.TCP))
VIP = Frontend(parse_address("172.30.0.1"), 80, Protocol.TCP)


@pytest.fixture
def settings(namespace: str, tmp_path: Path) -> Iterator[Settings]:
    """Of a node whose network namespace the test's thread is in."""
    chosen = Settings(
        proxy_mode="userspace",
        node_name="node1",
        cluster_cidr=CLUSTER_CIDRS,
        manifests=(tmp_path / "manifests",),
        state_dir=tmp_path / "state",
    )
    yield chosen
    lifecycle.cleanup(chosen.state_dir)


def listing() -> str:
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


def bring_to(proxier: UserspaceProxier, wanted: Rows) -> list[Op]:
    """A sync of a proxier that has just been started; returns the ops."""
    ops = diff(proxier.read(), wanted, proxier.phase)
    assert proxier.apply(ops) == []
    proxier.activate(complete=True)
    return ops


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[UserspaceProxier]:
    proxier = lifecycle.open_proxier(settings)
    try:
        yield proxier
    finally:
        proxier.close()


def all_cases(settings: Settings) -> dict[Key, Row]:
    """The rows of all cases of the lab."""
    [directory] = settings.manifests
    manifests.write(directory, "nodes", manifests.nodes())
    for case in cases.load():
        manifests.write(directory, case.name, manifests.objects(case))
    plan = plan_manifests(settings)
    renderer = lifecycle.renderer(settings)
    wanted = dict(renderer.render_node(plan.node))
    for one in plan.services.values():
        wanted |= renderer.render(one)
    return wanted


def test_what_is_written_is_read_and_a_restart_writes_nothing(settings: Settings) -> None:
    wanted = all_cases(settings)
    with opened(settings) as proxier:
        bring_to(proxier, wanted)
        assert proxier.read() == wanted
    before = listing()
    with opened(settings) as proxier:
        assert bring_to(proxier, wanted) == []
        assert listing() == before
        bring_to(proxier, {})
        assert proxier.read() == {}
        assert " to-" not in listing()


@pytest.mark.parametrize(
    "ranges",
    [
        ("10.0.0.0/8",),
        ("192.0.2.1/32",),
        ("10.1.0.0/16", "10.2.0.0/15", "10.64.0.0/16"),
        ("192.0.2.1/32", "192.0.2.2/32", "192.0.2.4/31", "198.51.100.0/24"),
        ("0.0.0.0/1", "128.0.0.0/2"),
    ],
)
def test_source_ranges_are_read(settings: Settings, ranges: tuple[str, ...]) -> None:
    wanted = {VIP: PortalRow(NAME, BACKENDS, source_ranges=ranges)}
    with opened(settings) as proxier:
        bring_to(proxier, wanted)
        assert proxier.read() == wanted


def test_networks_of_pods_are_read(settings: Settings) -> None:
    networks = tuple(
        ip_network(text) for text in ("10.0.0.0/8", "11.0.0.0/8", "11.1.0.0/16", "12.0.0.0/8", "fd00::/48")
    )
    wanted = dict(lifecycle.renderer(settings).render_node(NodePlan(cluster_networks=networks)))
    with opened(settings) as proxier:
        bring_to(proxier, wanted)
        assert proxier.read() == wanted
        assert bring_to(proxier, {}) != []
        assert proxier.read() == {}


def test_a_portal_with_and_without_backends(settings: Settings) -> None:
    with opened(settings) as proxier:
        for row in (
            PortalRow(NAME, BACKENDS),
            PortalRow(NAME, (), on_empty=OnEmpty.DROP),
            PortalRow(NAME, (), on_empty=OnEmpty.REJECT),
            PortalRow(NAME, BACKENDS[:1], affinity_timeout=10, source_ranges=("10.0.0.0/8",)),
            PortalRow(NAME, BACKENDS[1:]),
        ):
            bring_to(proxier, {VIP: row})
            assert proxier.read() == {VIP: row}


@given(data=st.data())
@tried(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_changes_and_restarts(settings: Settings, data: st.DataObject) -> None:
    with contextlib.ExitStack() as stack:
        renderer = lifecycle.renderer(settings)
        changes_and_restarts("userspace", lambda: stack.enter_context(opened(settings)), renderer, NODE_PLAN, data)


def test_what_others_broke_is_repaired(settings: Settings) -> None:
    wanted = all_cases(settings)
    with opened(settings) as proxier:
        bring_to(proxier, wanted)
        assert nft.delete_table("inet", "bpfproxy-userspace")
        assert bring_to(proxier, wanted) != []
        assert proxier.read() == wanted


def test_cleanup_removes_all_and_nothing_else(settings: Settings) -> None:
    subprocess.run(["nft", "-f", "-"], input=FOREIGN, text=True, check=True)
    before = listing()
    with opened(settings) as proxier:
        bring_to(proxier, all_cases(settings))
        assert set(before.splitlines()) <= set(listing().splitlines())
        pids = relays(settings.state_dir)
        assert len(pids) == 1
    removed = lifecycle.cleanup(settings.state_dir)
    assert [line.split()[0] for line in removed] == ["table", "process"]
    assert listing() == before
    assert relays(settings.state_dir) == []
    assert list(settings.state_dir.iterdir()) == []
    assert lifecycle.cleanup(settings.state_dir) == []
