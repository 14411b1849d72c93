"""Clients outside the cluster, by tc and by XDP, under both loaders, while agents come and go."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest

from bpfproxy.lab.cases import Via
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from bpfproxy.lab.node import Agent
from bpfproxy.lab.scene import Scene
from bpfproxy.lab.wait import wait_until
from tests.lab.conftest import UDP, Stage

WAYS: tuple[tuple[Via, int, bool], ...] = (
    ("NodePort", 0, True),
    ("LoadBalancer", 0, False),
    ("LoadBalancer", UDP, True),
    ("NodePort", UDP, False),
)
"""Kinds of frontends, places among the ports, and whether one flow is held."""
CLIENTS = ("client", "client2")
FAMILIES: tuple[Family, ...] = (4, 6)


@contextlib.contextmanager
def traffic(scene: Scene, clients: Sequence[str] = CLIENTS) -> Iterator[None]:
    """Held and short TCP connections and UDP flows in both families, by the nodes of `clients`; none may break, be
    refused or go unanswered, and none may wait until it is sent again."""
    with contextlib.ExitStack() as stack:
        loads = {
            (client, family, via, port, hold): stack.enter_context(
                scene.lab.places[client].load(
                    scene.flow(client=client, family=family, via=via, port=port), hold=hold, interval=0.01
                )
            )
            for client in clients
            for family in FAMILIES
            for via, port, hold in WAYS
        }
        yield
    reports = {way: load.stop() for way, load in loads.items()}
    assert {way: report for way, report in reports.items() if report.errors or report.sent <= 10} == {}


@pytest.fixture
def agents(outside: Lab) -> Iterator[list[Agent]]:
    """The agents of the shared lab, which run again after the test."""
    found = list(outside.agents.values())
    yield found
    for agent in found:
        if not agent.running:
            agent.stop()
            agent.start()


def settle(scene: Scene, *places: str) -> None:
    for client in CLIENTS:
        scene.settle(*places, client=client)


@pytest.mark.parametrize(
    ("outside", "end"),
    [
        pytest.param("tc", Agent.stop, id="tc-stopped"),
        pytest.param("tc", Agent.kill, id="tc-killed"),
        pytest.param("xdp", Agent.stop, id="xdp-stopped"),
        pytest.param("xdp", Agent.kill, id="xdp-killed"),
        pytest.param("compiled", Agent.kill, id="compiled-killed"),
    ],
    indirect=["outside"],
)
def test_a_restart_loses_nothing(stage: Stage, agents: list[Agent], end: Callable[[Agent], object]) -> None:
    """What changed meanwhile is applied; new flows come all the time, also while no agent runs."""
    scene = stage("pod1a", "pod2a")
    with traffic(scene):
        for agent in agents:
            end(agent)
        settle(scene, "pod1a", "pod2a")
        scene.put("pod1a", "pod1b", "pod2a")
        for agent in agents:
            agent.launch()
        for agent in agents:
            agent.wait_ready()
        settle(scene, "pod1a", "pod1b", "pod2a")


@pytest.mark.parametrize("outside", ["tc", "xdp"], indirect=True)
def test_killed_at_each_stage_of_its_start(stage: Stage, agents: list[Agent]) -> None:
    scene = stage("pod1a", "pod2a")
    agent = agents[0]
    with traffic(scene):
        for step in ("event=loaded", "event=attached", "event=sync"):
            agent.kill()
            offset = len(agent.said())
            agent.launch()
            wait_until(lambda offset=offset, step=step: step in agent.said(offset), 60, step)  # type: ignore[misc]
        agent.kill()
        settle(scene, "pod1a", "pod2a")
        agent.start()
        scene.put("pod1b", "pod2a")
        settle(scene, "pod1b", "pod2a")
