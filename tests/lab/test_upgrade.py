"""A new version takes over from an old one under load: its programs are others, or its maps, too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bpfproxy.lab import manifests
from bpfproxy.lab.cases import Service, Talk
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.node import Agent, packet_level
from bpfproxy.lab.place import PROJECT
from bpfproxy.lab.scene import Scene
from bpfproxy.lab.wait import wait_until
from tests.lab import checkouts
from tests.lab.conftest import BOTH, UDP
from tests.lab.test_outside import FAMILIES, WAYS

OUTSIDE = "client"
INSIDE = ("pod1c", "node1")
TALKS: tuple[tuple[int, Talk], ...] = ((0, "tcp"), (UDP, "udp"), (UDP, "udp-unconnected"))
"""Places among the ports, and how a client talks."""

Way = str
"""By which the packet level works: `tc` or `xdp`."""


@dataclass(frozen=True)
class Upgrade:
    """What differs from the version before."""

    options: tuple[str, ...] = ()
    fields: bool = False
    """Flows, sockets and affinities have another layout."""
    copied: bool = False
    """Flows do not stay in their maps: those that are just being opened may have to be opened again."""


UPGRADES = {
    "programs": Upgrade(("--conntrack-udp", "31")),
    "tables": Upgrade(("--max-frontends", "2000", "--max-backends", "1000")),
    "flows": Upgrade(("--max-flows", "8192", "--max-tcp-peers", "4096"), copied=True),
    "layout": Upgrade(fields=True, copied=True),
}
FIELDS = {
    "\t__u32 frontend;": "\t__u32 frontend;\n\t__u32 tidings;",
    "struct tcp_peer {": "struct tcp_peer {\n\t__u64 tidings;",
    "struct affinity {": "struct affinity {\n\t__u64 tidings;",
}


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in whose rows fields have moved."""
    return checkouts.copy(tmp_path_factory.mktemp("next"), {"bpf/abi.h": FIELDS}, rebuild=True)


class Node:
    """A node that serves two Services, one of them with session affinity, from an endpoint of its own and another."""

    def __init__(self, lab: Lab, way: Way, next_version: Path) -> None:
        self.lab = lab
        self.directory = lab.directory / "manifests"
        self._way = way
        self._next_version = next_version
        manifests.write(self.directory, "nodes", manifests.nodes())
        self.scene = Scene(lab, self.directory, Service(BOTH, type="LoadBalancer"))
        self.sticky = Scene(lab, self.directory, Service(BOTH[:1], affinity=600))
        for scene in (self.scene, self.sticky):
            scene.put("pod1a", "pod2a")
        self.agent(Upgrade()).start()
        self.scene.settle("pod1a", "pod2a", client=OUTSIDE)

    def agent(self, upgrade: Upgrade) -> Agent:
        """The one that is to run from now on, not started."""
        return self.lab.agent(
            "node1",
            manifests=self.directory,
            loader="prebuilt",
            options=(*packet_level(self._way), *upgrade.options),
            project=self._next_version if upgrade.fields else PROJECT,
        )

    @contextlib.contextmanager
    def traffic(self, *, short: bool) -> Iterator[None]:
        """From outside, a pod and the node; nothing may break, be refused or go unanswered. `short`: new connections
        all the time, too."""
        scene, places = self.scene, self.lab.places
        outside = [
            (scene.flow(client=OUTSIDE, family=family, via=via, port=port), held or not short)
            for family in FAMILIES
            for via, port, held in WAYS
        ]
        inside = [
            (client, scene.flow(client=client, family=family, port=port, talk=talk))
            for client in INSIDE
            for family in FAMILIES
            for port, talk in TALKS
        ]
        [stuck] = self.sticky.shares(client="pod1c", sockets=1)
        with contextlib.ExitStack() as stack:
            loads = [stack.enter_context(places[OUTSIDE].load(f, hold=hold, interval=0.01)) for f, hold in outside]
            loads += [stack.enter_context(places[c].load(flow, hold=True, interval=0.02)) for c, flow in inside]
            flow = scene.flow(client="pod1c")
            connected = stack.enter_context(places["pod1c"].open(flow))
            assert connected.exchange().peer == flow.to
            yield
            assert connected.exchange().peer == flow.to, "where the socket was going"
            assert self.sticky.shares(client="pod1c", sockets=8) == {stuck: 8}
        for load in loads:
            report = load.stop()
            assert report.errors == {}
            assert report.answered == report.sent > 10
            assert len(report.places) == 1 or report.flows > 1, "it stays where it was"

    def flows(self) -> list[dict[str, Any]]:
        """Those of clients outside that are translated."""
        found = self.lab.agents["node1"].look("conntrack", "list")
        return [flow for flow in found if not flow["direct"]]

    def generations(self) -> list[str]:
        """The maps that there are, and what is written down of them."""
        state = self.lab.agents["node1"].state
        return sorted(path.name for path in (*state.glob("maps-*"), *(state / "bpf").glob("maps-*")))

    def left_aside(self) -> list[str]:
        return [str(path) for path in (self.lab.agents["node1"].state / "bpf").rglob("*_former*")]


@pytest.fixture
def node(request: pytest.FixtureRequest, next_version: Path) -> Iterator[Node]:
    way = request.param
    with Lab(xdp=["node1"] if way == "xdp" else ()) as lab:
        yield Node(lab, way, next_version)


@pytest.mark.parametrize(
    ("node", "upgrade"),
    [("tc", "tables"), ("tc", "layout"), ("tc", "flows"), ("xdp", "programs"), ("xdp", "tables"), ("xdp", "layout")],
    indirect=["node"],
)
def test_an_upgrade_loses_nothing(node: Node, upgrade: str) -> None:
    before = node.generations()
    made = UPGRADES[upgrade]
    with node.traffic(short=not made.copied):
        node.lab.agents["node1"].stop()
        node.scene.put("pod1a", "pod1b", "pod2a")
        oldest = max(flow["age"] for flow in node.flows())
        new = node.agent(made)
        new.start()
        node.scene.settle("pod1a", "pod1b", "pod2a", client=OUTSIDE)
        after = node.generations()
        flows = node.flows()
        assert max(flow["age"] for flow in flows) > oldest
        assert all(node.scene.case.name in flow["service"] for flow in flows), "their frontends have kept their ids"
    assert len(after) == 2, "its maps and their record"
    assert (after == before) == (upgrade == "programs")
    assert node.left_aside() == []
    assert "not_inherited" not in new.said()


@pytest.mark.parametrize("node", ["tc", "xdp"], indirect=True)
def test_killed_again_and_again_in_an_upgrade(node: Node) -> None:
    """At every stage."""
    with node.traffic(short=False):
        node.lab.agents["node1"].stop()
        agent = node.agent(UPGRADES["layout"])
        for stage in ("level=packets", "event=device_attached", "event=attached"):
            offset = len(agent.said()) if agent.log.exists() else 0
            agent.launch()
            wait_until(lambda offset=offset, stage=stage: stage in agent.said(offset), 60, stage)  # type: ignore[misc]
            agent.kill()
        agent.start()
        node.scene.put("pod1a", "pod1b", "pod2a")
        node.scene.settle("pod1a", "pod1b", "pod2a", client=OUTSIDE)
    assert len(node.generations()) == 2
    assert node.left_aside() == []
