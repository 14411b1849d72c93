"""The userspace proxier under real traffic, while its agent, its process and its endpoints come and go."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from bpfproxy.lab import cases
from bpfproxy.lab.cases import Service
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from bpfproxy.lab.node import Agent
from bpfproxy.lab.place import LoadReport
from bpfproxy.lab.scene import Scene
from bpfproxy.lab.wait import wait_until
from bpfproxy.proxiers.userspace.process import Process
from tests.lab.conftest import BOTH, UDP
from tests.lab.relays import relays

SYNC_PERIOD = ("--sync-period", "1")
FAMILIES: tuple[Family, ...] = (4, 6)


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
