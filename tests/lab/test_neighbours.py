"""Rules that others have in the node's tables, beside the packet level: those of a network plugin, of NetworkPolicy, of
kube-proxy before."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bpfproxy.lab import change
from bpfproxy.lab.cases import Via
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import CLUSTER_CIDRS, NODES, SPOTS, UNHOOKED, Family
from bpfproxy.lab.place import Flow
from bpfproxy.lab.scene import Scene
from tests.lab.conftest import UDP, Stage

DEFAULT = ("tc", "xdp")
HOST_ROUTING = ("tc-host-routing", "xdp-host-routing")
TRANSFER = 8 << 20
CLUSTER = dict(zip((4, 6), CLUSTER_CIDRS, strict=True))
VIAS: tuple[Via, ...] = ("LoadBalancer", "NodePort")


def both_kinds(scene: Scene, client: str, family: Family) -> list[str]:
    """What a TCP and a UDP request to the Service come to: places or errors."""
    asked = [scene.ask(timeout=0.5, client=client, family=family, via="LoadBalancer", port=port) for port in (0, UDP)]
    return [one.reply.place if one.reply else one.error for [one] in asked]


def policy(pod: str, admitted: str, family: Family) -> tuple[str, ...]:
    """As NetworkPolicy is done by many a network plugin: one client may reach the pod."""
    to = f"-A FORWARD -d {SPOTS[pod].address(family)}"
    return (
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f"{to} -s {SPOTS[admitted].address(family)} -j ACCEPT",
        f"{to} -j DROP",
    )


@pytest.mark.parametrize("outside", DEFAULT, indirect=True)
@pytest.mark.parametrize("family", [4, 6])
def test_a_network_policy_holds(stage: Stage, family: Family) -> None:
    scene = stage("pod1a")
    assert both_kinds(scene, "client", family) == ["pod1a", "pod1a"]
    with change.rules(scene.lab.topology, "node1", family, *policy("pod1a", "pod1c", family)):
        assert both_kinds(scene, "client", family) == ["TIMEOUT", "TIMEOUT"]
        assert both_kinds(scene, "bare1c", family) == ["pod1a", "pod1a"]
    with change.rules(scene.lab.topology, "node1", family, *policy("pod1a", "client", family)):
        assert both_kinds(scene, "client", family) == ["pod1a", "pod1a"]
        assert both_kinds(scene, "bare1c", family) == ["TIMEOUT", "TIMEOUT"]


@pytest.mark.parametrize("outside", [*DEFAULT, *HOST_ROUTING], indirect=True)
@pytest.mark.parametrize("family", [4, 6])
def test_a_network_policy_holds_on_another_node(stage: Stage, family: Family) -> None:
    """Which sees the first node as the client."""
    scene = stage("pod2a")
    with change.rules(scene.lab.topology, "node2", family, *policy("pod2a", "pod1c", family)):
        assert both_kinds(scene, "client", family) == ["TIMEOUT", "TIMEOUT"]
    with change.rules(scene.lab.topology, "node2", family, *policy("pod2a", "node1", family)):
        assert both_kinds(scene, "client", family) == ["pod2a", "pod2a"]


@pytest.mark.parametrize("outside", HOST_ROUTING, indirect=True)
@pytest.mark.parametrize("family", [4, 6])
def test_host_routing_bypasses_a_network_policy(stage: Stage, family: Family) -> None:
    scene = stage("pod1a")
    with change.rules(scene.lab.topology, "node1", family, *policy("pod1a", "pod1c", family)):
        assert both_kinds(scene, "client", family) == ["pod1a", "pod1a"]


@pytest.mark.parametrize("outside", [HOST_ROUTING[0]], indirect=True)
def test_check_says_what_host_routing_bypasses(outside: Lab) -> None:
    agent = outside.agents["node1"]
    said = agent.command("check", *agent.options, "--state-dir", str(agent.state)).stdout
    assert "host routing" in said
    for bypassed in ("FORWARD", "NetworkPolicy", "INVALID", "MASQUERADE"):
        assert bypassed in said


def kube_proxy(node: str, family: Family) -> str:
    """The rule of kube-proxy that drops what conntrack cannot place."""
    return "-A FORWARD -m conntrack --ctstate INVALID -j DROP"


def network_plugin(node: str, family: Family) -> str:
    """The rule of network plugins by which pods go elsewhere as their node."""
    pods = NODES[node].pods4 if family == 4 else NODES[node].pods6
    return f"-t nat -A POSTROUTING -s {pods} ! -d {CLUSTER[family]} -j MASQUERADE --random-fully"


@pytest.mark.parametrize("outside", [*DEFAULT, *HOST_ROUTING], indirect=True)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("backend", ["pod1a", "pod2a"], ids=["local", "remote"])
@pytest.mark.parametrize("rule", [kube_proxy, network_plugin])
def test_rules_that_change_nothing(
    stage: Stage, rule: Callable[[str, Family], str], backend: str, family: Family
) -> None:
    scene = stage(backend)
    topology = scene.lab.topology
    with (
        change.rules(topology, "node1", family, rule("node1", family)),
        change.rules(topology, "node2", family, rule("node2", family)),
    ):
        for client in ("client", *UNHOOKED):
            assert both_kinds(scene, client, family) == [backend, backend]
        for via in VIAS:
            for port in (0, UDP):
                flow = scene.flow(client="client", family=family, via=via, port=port)
                assert held(scene, flow) == {(backend, flow.to)}
        done = scene.transfer(TRANSFER, client="client", family=family, via="LoadBalancer")
        assert done.intact
        assert done.peer == scene.to(client="client", family=family, via="LoadBalancer")


def held(scene: Scene, flow: Flow) -> set[tuple[str, tuple[str, int] | None]]:
    """Who answered on one socket, and who that was in the client's view."""
    outcomes = scene.lab.places["client"].request(flow, per_socket=20)
    return {(one.reply.place if one.reply else one.error, one.peer) for one in outcomes}
