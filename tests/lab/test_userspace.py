"""The userspace proxier on a real kernel: its table and its process, under real traffic."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tried
from hypothesis import strategies as st

from bpfproxy.api import plan_manifests
from bpfproxy.config import Settings
from bpfproxy.diff import diff
from bpfproxy.engine import Engine
from bpfproxy.lab import cases, manifests, netns, remains
from bpfproxy.lab.cases import Port, Service
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import CLUSTER_CIDRS, Family
from bpfproxy.lab.node import Agent
from bpfproxy.lab.place import LoadReport
from bpfproxy.lab.scene import Scene
from bpfproxy.lab.wait import wait_until
from bpfproxy.model.address import parse_address
from bpfproxy.model.event import Update
from bpfproxy.model.frontend import Backend, Frontend, NodePlan, OnEmpty, ServicePortName
from bpfproxy.model.service import ObjectName, Protocol
from bpfproxy.netfilter import nft
from bpfproxy.plan import NodeConfig
from bpfproxy.proxiers.base import Key, Op, Row, Rows
from bpfproxy.proxiers.userspace import lifecycle
from bpfproxy.proxiers.userspace.process import Process
from bpfproxy.proxiers.userspace.proxier import UserspaceProxier
from bpfproxy.proxiers.userspace.rows import PortalRow
from tests.unit import strategies

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


# ---- rows --------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Of a node whose network namespace the test's thread is in."""
    name = f"{remains.prefix(f'{os.getpid()}-userspace')}-rules"
    chosen = Settings(
        proxy_mode="userspace",
        node_name="node1",
        cluster_cidr=CLUSTER_CIDRS,
        manifests=(tmp_path / "manifests",),
        state_dir=tmp_path / "state",
    )
    netns.make(name)
    try:
        with netns.inside(name):
            yield chosen
            lifecycle.cleanup(chosen.state_dir)
    finally:
        netns.remove(name)


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
    """After any of them the kernel holds the rows of the Services that there are, and a restart has nothing to do."""
    node = NodeConfig("n1", cluster_cidrs=tuple(strategies.CIDRS), addresses=NODE_PLAN.node_port_addresses)
    objects: list[Update] = []
    with contextlib.ExitStack() as stack:

        def start() -> Engine:
            engine = Engine({"userspace": stack.enter_context(opened(settings))}, "userspace", node)
            engine.start()
            for update in objects:
                engine.update(update)
            engine.update(Update(complete=True))
            return engine

        engine = start()
        assert not engine.sync().failures
        steps = ["service", "slice", "sync", "sync", "restart", "resync"]
        for step in [*data.draw(st.lists(st.sampled_from(steps), max_size=20)), "sync"]:
            if step in ("service", "slice"):
                kind: st.SearchStrategy[Any] = strategies.services() if step == "service" else strategies.slices()
                objects.append(Update(objects=(data.draw(kind),)))
                engine.update(objects[-1])
                continue
            if step == "restart":
                engine = start()
            report = engine.resync() if step == "resync" else engine.sync()
            assert report.failures == ()
        renderer = lifecycle.renderer(settings)
        wanted: dict[Key, Row] = dict(renderer.render_node(engine.node_plan))
        for name in strategies.SERVICES:
            if plan := engine.plan_of(name):
                wanted |= renderer.render(plan)
        assert stack.enter_context(opened(settings)).read() == wanted
        assert start().sync().ops == 0


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


def relays(state_dir: Path) -> list[int]:
    """The processes that relay for an agent with this state directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"bpfproxy.proxiers.userspace" in words and any(str(state_dir).encode() in word for word in words):
                found.append(int(path.parent.name))
    return found


# ---- traffic -----------------------------------------------------------------------------------------------------

BOTH = (Port(80, name="web"), Port(80, name="datagrams", protocol="UDP"))
UDP = 1
SYNC_PERIOD = ("--sync-period", "1")
FAMILIES: tuple[Family, ...] = (4, 6)


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """A Service that is written and not served."""
    directory = lab.directory / "manifests"
    manifests.write(directory, "nodes", manifests.nodes())
    made = Scene(lab, directory, Service(BOTH, type="NodePort"))
    made.put("pod1a", "pod2a")
    return made


def start(lab: Lab, scene: Scene, *options: str, mode: str = "userspace") -> Agent:
    """The agent of node1, serving."""
    wanted = ("--proxy-mode", mode, *SYNC_PERIOD, *options)
    agent = lab.agent("node1", manifests=scene.directory, loader="prebuilt", options=wanted)
    agent.start()
    return agent


@contextlib.contextmanager
def traffic(scene: Scene, *, held: bool = True) -> Iterator[None]:
    """Short and (`held`) lasting connections from a pod, and datagrams; none may break or be refused."""
    client = scene.lab.places["pod1c"]
    with contextlib.ExitStack() as stack:
        loads = [
            stack.enter_context(client.load(scene.flow(family=family), hold=hold, interval=0.01))
            for family in FAMILIES
            for hold in ((False, True) if held else (False,))
        ]
        yield
    for load in loads:
        unharmed(load.stop())


def unharmed(report: LoadReport) -> None:
    assert report.errors == {}
    assert report.answered == report.sent > 10


@pytest.mark.parametrize("end", [Agent.stop, Agent.kill], ids=["stopped", "killed"])
def test_an_agent_comes_and_goes_under_load(lab: Lab, scene: Scene, end: Callable[[Agent], object]) -> None:
    agent = start(lab, scene)
    scene.settle("pod1a", "pod2a")
    before = relays(agent.state)
    with traffic(scene):
        end(agent)
        scene.settle("pod1a", "pod2a")
        scene.put("pod1b", "pod2a", "pod1a")
        agent.start()
        scene.settle("pod1b", "pod2a", "pod1a")
    assert relays(agent.state) == before


def test_the_process_is_started_again(lab: Lab, scene: Scene) -> None:
    agent = start(lab, scene)
    scene.settle("pod1a", "pod2a")
    [pid] = relays(agent.state)
    with lab.places["pod1c"].open(scene.flow(0.2, port=UDP)) as flow:
        assert flow.exchange().reply
        os.kill(pid, signal.SIGKILL)
        assert not flow.exchange().reply
        wait_until(lambda: relays(agent.state) not in ([], [pid]), 10, "there is another process")
        scene.settle("pod1a", "pod2a")
        wait_until(lambda: flow.exchange().reply, 10, "a socket that goes on sending is served again")
    agent.stop()
    assert agent.cleanup().returncode == 0
    assert relays(agent.state) == []


def test_a_udp_flow_finds_the_listener_that_is_new(lab: Lab, scene: Scene) -> None:
    """A Service that loses all its endpoints and gets others: its port is served by another listener (rule 16)."""
    start(lab, scene)
    scene.settle("pod1a", "pod2a")
    with contextlib.ExitStack() as stack:
        flows = [
            stack.enter_context(
                lab.places[client].open(scene.flow(0.3, port=UDP, family=family, client=client, via=via))
            )
            for client in ("pod1c", "client")
            for via in ("ClusterIP", "NodePort")
            for family in FAMILIES
        ]
        assert all(flow.exchange().reply for flow in flows)
        scene.put()
        wait_until(lambda: not any(flow.exchange().reply for flow in flows), 10, "nobody answers")
        scene.put("pod2b")

        def answered() -> bool:
            replies = [flow.exchange().reply for flow in flows]
            return all(reply is not None and reply.place == "pod2b" for reply in replies)

        wait_until(answered, 10, "the new endpoint answers all")


def test_a_udp_session_leaves_an_endpoint_that_stops_serving(lab: Lab, scene: Scene) -> None:
    """Rule 16: one that terminates keeps what it has, one that has gone does not."""
    start(lab, scene)
    scene.put("pod1a")
    scene.settle("pod1a")
    with lab.places["pod1c"].open(scene.flow(port=UDP)) as flow:
        assert flow.exchange().reply
        for endpoint, place in (
            (cases.Endpoint("pod1a", ready=False, serving=True, terminating=True), "pod1a"),
            (cases.Endpoint("pod1a", ready=False, serving=False, terminating=True), "pod2a"),
        ):
            scene.put(endpoint, "pod2a")
            scene.settle("pod2a")
            reply = flow.exchange().reply
            assert reply is not None
            assert reply.place == place


def test_a_refused_connection_is_tried_elsewhere(lab: Lab, scene: Scene) -> None:
    """One endpoint of three has nobody at its port."""
    start(lab, scene)
    lab.places["pod1b"].stop()
    scene.put("pod1a", "pod1b", "pod2a")
    wait_until(lambda: len(scene.shares(8)) == 2, 10, "it is served")
    for family in FAMILIES:
        assert set(scene.shares(60, family=family)) == {"pod1a", "pod2a"}


def test_affinity(lab: Lab, scene: Scene) -> None:
    """One for all frontends; shared in turn without."""
    start(lab, scene)
    scene.settle("pod1a", "pod2a")
    shares = scene.shares(40)
    assert abs(shares["pod1a"] - shares["pod2a"]) <= 1
    sticky = Scene(lab, scene.directory, Service(BOTH, type="NodePort", affinity=60))
    sticky.put("pod1a", "pod2a")
    wait_until(lambda: sticky.ask()[0].reply is not None, 10, "it is served")
    found = sticky.shares(20) + sticky.shares(20, via="NodePort")
    assert len(found) == 1
    [had] = found
    [left] = {"pod1a", "pod2a"} - {had}
    sticky.put(left)
    sticky.settle(left)
    sticky.put("pod1a", "pod2a")
    with pytest.raises(TimeoutError):
        sticky.settle(had, timeout=1)
    assert sticky.shares(20) == Counter({left: 20})


def test_more_than_the_limit_are_turned_away(lab: Lab, scene: Scene) -> None:
    agent = start(lab, scene, "--max-connections", "20")
    wait_until(lambda: scene.ask()[0].reply is not None, 10, "it is served")
    process = Process(agent.state / "userspace", 20, 1.0)
    wait_until(lambda: process.load().connections == 0, 5, "nothing is left")
    client = lab.places["pod1c"]
    with contextlib.ExitStack() as stack:
        flows = [stack.enter_context(client.open(scene.flow())) for _ in range(20)]
        assert all(flow.exchange().reply for flow in flows)
        for outcome in scene.ask(20):
            assert outcome.reply is None
            assert outcome.error in ("ECONNRESET", "EPIPE")
        assert all(flow.exchange().reply for flow in flows)
    assert process.load().refused == 20
    wait_until(lambda: process.load().connections == 0, 5, "there is room again")
    process.close()
    assert set(scene.shares(40)) == {"pod1a", "pod2a"}


def test_modes_take_over_from_each_other_under_load(lab: Lab, scene: Scene) -> None:
    """The old one is cleaned up when the new one serves and no connection is left with it."""
    agent = start(lab, scene)
    scene.settle("pod1a", "pod2a")
    with traffic(scene, held=False):
        for old, new in (("userspace", "nftables"), ("nftables", "userspace")):
            agent.stop()
            agent = start(lab, scene, mode=new)
            cleaned = f"event=cleaned_up proxier={old}"
            wait_until(lambda agent=agent, cleaned=cleaned: cleaned in agent.said(), 20, cleaned)  # type: ignore[misc]
            assert bool(relays(agent.state)) == (new == "userspace")
            scene.settle("pod1a", "pod2a")
