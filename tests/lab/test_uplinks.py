"""Uplinks that are two, that go and come back, that get addresses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bpfproxy.lab import change
from bpfproxy.lab.cases import Via
from bpfproxy.lab.layout import Family
from bpfproxy.lab.scene import Scene
from bpfproxy.lab.topology import UPLINK
from bpfproxy.lab.wait import wait_until
from tests.lab.conftest import UDP, Stage

FAMILIES: tuple[Family, ...] = (4, 6)
VIAS: tuple[Via, ...] = ("ClusterIP", "NodePort", "LoadBalancer")
ALL = ("tc", "xdp", "tc-host-routing")
REQUESTS = 20
MORE: dict[Family, tuple[str, int]] = {4: ("172.18.0.77", 24), 6: ("fd00:172:18::77", 64)}


def answers(scene: Scene, family: Family) -> list[str]:
    """Who answers outside, or why nobody does, by each kind of address and protocol."""
    return [
        one.reply.place if one.reply else one.error
        for via in VIAS
        for port in (0, UDP)
        for one in scene.ask(timeout=0.5, client="client", family=family, via=via, port=port)
    ]


@pytest.mark.parametrize("outside", ALL, indirect=True)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("backend", ["pod1a", "pod2a"], ids=["local", "remote"])
@pytest.mark.parametrize("name", ["eth1", "other0"], ids=["uplink", "passage"])
def test_replies_leave_by_another_device(stage: Stage, name: str, backend: str, family: Family) -> None:
    """One that is served as an uplink, too, or one that nobody named."""
    scene = stage(backend)
    with change.link(scene.lab.topology, "node1", "client", name, to=["client"]) as sent:
        wait_until(lambda: set(answers(scene, family)) == {backend}, 10, "replies come by the other device")
        before = sent()
        done = scene.transfer(8 << 20, client="client", family=family, via="LoadBalancer")
        assert done.intact
        assert sent() - before > 8 << 20


@pytest.mark.parametrize("outside", ALL, indirect=True)
@pytest.mark.parametrize("family", [4, 6])
def test_a_connection_follows_the_route(stage: Stage, family: Family) -> None:
    """To a pod of another node: a flow remembers its next hop only until routes change. What is lost while the link
    comes up is sent again."""
    scene = stage("pod2a")
    flow = scene.flow(5.0, client="client", family=family, via="LoadBalancer")

    def answered(sent: Callable[[], int]) -> int:
        """The bytes that are sent there for some requests."""
        before = sent()
        for _ in range(REQUESTS):
            reply = held.exchange().reply
            assert reply is not None
            assert reply.place == "pod2a"
        return sent() - before

    with scene.lab.places["client"].open(flow) as held:
        answered(int)
        with change.link(scene.lab.topology, "node1", "node2", "eth1", to=["pod2a"]) as sent:
            wait_until(lambda: answered(sent) > REQUESTS * 40, 10, "the connection goes by the new link")
        answered(int)


@pytest.mark.parametrize("outside", ALL, indirect=True)
def test_an_uplink_that_goes_and_comes_back(stage: Stage) -> None:
    local, remote = stage("pod1a"), stage("pod2a")
    for _ in range(2):
        local.lab.topology.replug("node1")
        for family in FAMILIES:
            for scene, backend in ((local, "pod1a"), (remote, "pod2a")):
                wait_until(lambda: set(answers(scene, family)) == {backend}, 20, f"{backend} answers again")  # noqa: B023


@pytest.mark.parametrize("outside", ALL, indirect=True)
@pytest.mark.parametrize("family", [4, 6])
def test_a_node_gets_an_address(stage: Stage, family: Family) -> None:
    scene = stage("pod1a")
    address, prefix = MORE[family]
    place = scene.lab.places["client"]
    flows = [scene.flow(0.5, client="client", family=family, via="NodePort", port=port) for port in (0, UDP)]

    def seen() -> set[str]:
        asked = [place.request(replace(flow, to=(address, flow.to[1]))) for flow in flows]
        return {one.reply.place if one.reply else one.error for [one] in asked}

    with change.address(scene.lab.topology, "node1", UPLINK, address, prefix):
        wait_until(lambda: seen() == {"pod1a"}, 10, "NodePorts answer on the new address")
    wait_until(lambda: "pod1a" not in seen(), 10, "they no longer do")
