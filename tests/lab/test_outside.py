"""Clients outside the cluster, by tc and by XDP, while the agent comes and goes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from bpfproxy.lab import manifests
from bpfproxy.lab.cases import Port, Service, Via
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from bpfproxy.lab.node import Agent, packet_level
from bpfproxy.lab.scene import Scene

BOTH = (Port(80, name="web"), Port(80, name="datagrams", protocol="UDP"))
UDP = 1
WAYS: tuple[tuple[Via, int, bool], ...] = (
    ("NodePort", 0, True),
    ("LoadBalancer", 0, False),
    ("LoadBalancer", UDP, True),
    ("NodePort", UDP, False),
)
"""Kinds of frontends, places among the ports, and whether one flow is held."""
FAMILIES: tuple[Family, ...] = (4, 6)


@pytest.fixture(params=["tc", "xdp"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A Service with an endpoint on the node by which the client comes and one elsewhere, served."""
    with Lab(xdp=["node1"] if request.param == "xdp" else ()) as lab:
        directory = lab.directory / "manifests"
        manifests.write(directory, "nodes", manifests.nodes())
        made = Scene(lab, directory, Service(BOTH, type="LoadBalancer"))
        made.put("pod1a", "pod2a")
        options = packet_level(request.param)
        lab.agent("node1", manifests=directory, loader="prebuilt", options=options).start()
        made.settle("pod1a", "pod2a", client="client")
        yield made


@contextlib.contextmanager
def traffic(scene: Scene) -> Iterator[None]:
    """Held and short TCP connections and UDP flows in both families; none may break, be refused or go unanswered."""
    place = scene.lab.places["client"]
    flows = [
        (scene.flow(client="client", family=family, via=via, port=port), hold)
        for family in FAMILIES
        for via, port, hold in WAYS
    ]
    with contextlib.ExitStack() as stack:
        loads = [stack.enter_context(place.load(flow, hold=hold, interval=0.005)) for flow, hold in flows]
        yield
    for load in loads:
        report = load.stop()
        assert report.errors == {}
        assert report.answered == report.sent > 10


@pytest.mark.parametrize("end", [Agent.stop, Agent.kill], ids=["stopped", "killed"])
def test_a_restart_loses_nothing(scene: Scene, end: Callable[[Agent], object]) -> None:
    agent = scene.lab.agents["node1"]
    with traffic(scene):
        end(agent)
        scene.settle("pod1a", "pod2a", client="client")
        scene.put("pod1a", "pod1b", "pod2a")
        agent.start()
        scene.settle("pod1a", "pod1b", "pod2a", client="client")
