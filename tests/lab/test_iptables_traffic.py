"""Real traffic through the rules of the iptables proxier."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from bpfproxy.lab import cases, manifests, netns
from bpfproxy.lab.cases import Case, Endpoint, Service, Via
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import CLUSTER_CIDRS, NODES, Family
from bpfproxy.lab.node import Agent
from bpfproxy.lab.place import OpenFlow
from bpfproxy.lab.scene import Scene
from bpfproxy.lab.wait import wait_until
from tests.lab.check import check
from tests.lab.conftest import BOTH, UDP

TRIED = (
    "node-port",
    "source-ranges-of-one",
    "host-network",
    "hairpin",
    "no-endpoints",
    "internal-local",
    "external-local",
    "affinity",
)
"""With traffic. Rules are traced for every case, without a kernel, in tests/unit."""
ALL = [cases.case(name) for name in TRIED]
SAVES = ("iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save")
FAMILIES: tuple[Family, ...] = (4, 6)


def start(lab: Lab, node: str, variant: str) -> Agent:
    directory = lab.directory / "manifests"
    options = ("--proxy-mode", "iptables", "--iptables-variant", variant)
    agent = lab.agent(node, manifests=directory, cluster_cidrs=CLUSTER_CIDRS, options=options)
    agent.start()
    return agent


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab whose agents serve all cases by the variant that is the parameter."""
    with Lab(unhooked=True) as lab:
        directory = lab.directory / "manifests"
        manifests.write(directory, "nodes", manifests.nodes())
        for case in ALL:
            manifests.write(directory, case.name, manifests.objects(case))
        for node in NODES:
            start(lab, node, request.param)
        yield lab


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
@pytest.mark.parametrize("served", ["nft", "legacy"], indirect=True)
def test_case(served: Lab, case: Case, family: Family) -> None:
    check(served, (*cases.probes(case, family), *cases.outside_probes(case, family)), "iptables")


@pytest.fixture(params=["nft", "legacy"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A Service with an endpoint on the node by which the client comes and one elsewhere, served."""
    with Lab() as lab:
        directory = lab.directory / "manifests"
        manifests.write(directory, "nodes", manifests.nodes())
        made = Scene(lab, directory, Service(BOTH, type="LoadBalancer"))
        made.put("pod1a", "pod2a")
        start(lab, "node1", request.param)
        made.settle("pod1a", "pod2a", client="client")
        yield made


@contextlib.contextmanager
def traffic(scene: Scene) -> Iterator[None]:
    """Held and short TCP connections and UDP flows in both families; none may break, be refused or go unanswered."""
    ways: tuple[tuple[str, Via, int, bool], ...] = (
        ("client", "NodePort", 0, True),
        ("client", "LoadBalancer", 0, False),
        ("client", "LoadBalancer", UDP, True),
        ("pod1c", "ClusterIP", 0, False),
        ("node1", "ClusterIP", UDP, True),
    )
    with contextlib.ExitStack() as stack:
        loads = [
            stack.enter_context(
                scene.lab.places[client].load(
                    scene.flow(client=client, family=family, via=via, port=port), hold=hold, interval=0.01
                )
            )
            for family in FAMILIES
            for client, via, port, hold in ways
        ]
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


def test_rule_16_udp_goes_to_a_live_endpoint_when_its_own_goes(scene: Scene) -> None:
    place = scene.lab.places["client"]
    for family in FAMILIES:
        scene.put("pod1a", "pod2a")
        scene.settle("pod1a", "pod2a", client="client")
        with place.open(scene.flow(client="client", family=family, via="NodePort", port=UDP, timeout=0.2)) as flow:
            first = flow.exchange().reply
            assert first is not None
            other = "pod2a" if first.place == "pod1a" else "pod1a"
            # It terminates and serves on: it keeps what it has.
            scene.put(Endpoint(first.place, ready=False, serving=True, terminating=True), other)
            scene.settle(other, client="client")
            assert is_answered_by(flow, first.place)
            # It serves no more.
            scene.put(Endpoint(first.place, ready=False, serving=False, terminating=True), other)
            wait_until(partial(is_answered_by, flow, other), 10, f"the flow goes to {other}")


def is_answered_by(flow: OpenFlow, place: str) -> bool:
    reply = flow.exchange().reply
    return reply is not None and reply.place == place


def test_rule_16_tcp_runs_out(scene: Scene) -> None:
    with scene.lab.places["client"].open(scene.flow(client="client", via="NodePort")) as flow:
        first = flow.exchange().reply
        assert first is not None
        other = "pod2a" if first.place == "pod1a" else "pod1a"
        scene.put(other)
        scene.settle(other, client="client")
        assert is_answered_by(flow, first.place)


def test_masquerading_keeps_off_the_reserved_ports(scene: Scene) -> None:
    outcomes = scene.ask(150, client="client", via="NodePort") + scene.ask(
        150, client="client", via="NodePort", port=UDP
    )
    ports = [one.reply.peer[1] for one in outcomes if one.reply]
    assert len(ports) == 300
    assert 1024 <= min(ports) <= max(ports) <= 61000


def test_cleanup_by_command(scene: Scene) -> None:
    agent = scene.lab.agents["node1"]
    agent.stop()
    done = agent.cleanup()
    assert done.returncode == 0, done.stderr
    assert "KUBE-SERVICES" in done.stdout
    assert "KUBE-" not in rules_of(scene.lab, "node1")


def rules_of(lab: Lab, node: str) -> str:
    with netns.inside(lab.topology.netns(node)):
        return "".join(subprocess.run([name], capture_output=True, text=True, check=True).stdout for name in SAVES)


def test_one_service_of_a_node_on_ebpf(lab: Lab) -> None:
    directory = lab.directory / "manifests"
    manifests.write(directory, "nodes", manifests.nodes())
    on_ebpf, on_iptables = (Scene(lab, directory, Service(BOTH, type="NodePort")) for _ in range(2))
    for scene in (on_ebpf, on_iptables):
        scene.put("pod1a", "pod2a")
    service, *slices = manifests.objects(on_iptables.case)
    service["metadata"]["annotations"] = {"bpfproxy.io/proxy-mode": "iptables"}
    manifests.write(directory, on_iptables.case.name, [service, *slices])
    agent = lab.agent("node1", manifests=directory, cluster_cidrs=CLUSTER_CIDRS, loader="prebuilt")
    agent.start()
    on_ebpf.settle("pod1a", "pod2a")
    on_iptables.settle("pod1a", "pod2a")
    on_iptables.settle("pod1a", "pod2a", client="client")
    saved = rules_of(lab, "node1")
    assert on_iptables.case.name in saved
    assert on_ebpf.case.name not in saved
    on_iptables.put("pod2a")  # without the annotation: it moves over, and the rules go
    on_iptables.settle("pod2a")
    wait_until(lambda: "KUBE-" not in rules_of(lab, "node1"), 10, "the rules are gone")
