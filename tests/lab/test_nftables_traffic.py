"""The nftables proxier under real traffic: clients outside the cluster, pods and nodes, both families."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfproxy.api import plan_manifests
from bpfproxy.config import Settings
from bpfproxy.diff import diff
from bpfproxy.lab import cases, manifests, netns
from bpfproxy.lab.cases import Case, Probe, Service
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import CLUSTER_CIDRS, NODES, Family
from bpfproxy.lab.place import Flow
from bpfproxy.lab.scene import Scene
from bpfproxy.lab.wait import wait_until
from bpfproxy.proxiers.base import Key, Row
from bpfproxy.proxiers.nftables import lifecycle
from tests.lab.check import check
from tests.lab.conftest import BOTH, UDP

HANDFUL = (
    "cluster-ip-shared-number",
    "load-balancer",
    "source-ranges-of-one",
    "host-network",
    "hairpin",
    "no-endpoints",
    "internal-local",
    "external-local",
    "external-local-both",
    "affinity",
)
"""Cases; all of them are traced without a kernel."""
TIMEOUT = 3.0
"""Seconds. A refusal that comes back while connect() still holds the socket is only heard when the SYN is repeated."""
SERVICE_CIDRS = ("10.96.0.0/16", "fd00:10:96::/64")


def sync(lab: Lab, directory: Path) -> None:
    """Bring both nodes to what the manifests ask for, each by a proxier that has just been started."""
    for node in NODES:
        chosen = Settings(
            manifests=(directory,),
            node_name=node,
            cluster_cidr=CLUSTER_CIDRS,
            service_cidr=SERVICE_CIDRS,
            proxy_mode="ebpf",
            state_dir=lab.directory / f"state-{node}",
        )
        plan = plan_manifests(chosen)
        with netns.inside(lab.topology.netns(node)):
            proxier = lifecycle.open_proxier(chosen)
            wanted: dict[Key, Row] = dict(proxier.render_node(plan.node))
            for service in plan.services.values():
                wanted |= proxier.render(service)
            assert proxier.apply(diff(proxier.read(), wanted, proxier.phase)) == []


@pytest.fixture(scope="module")
def served() -> Iterator[Lab]:
    """A lab whose nodes serve these cases."""
    with Lab(unhooked=True) as lab:
        directory = lab.directory / "manifests"
        manifests.write(directory, "nodes", manifests.nodes())
        for name in HANDFUL:
            manifests.write(directory, name, manifests.objects(cases.case(name)))
        sync(lab, directory)
        yield lab


def probes(case: Case, family: Family) -> Iterator[Probe]:
    """From outside and from pods to all frontends; from nodes to their own NodePorts, as they have no route to VIPs."""
    yield from cases.outside_probes(case, family)
    for probe in cases.probes(case, family):
        if probe.client in NODES and probe.via in ("NodePort", "localhost") and not probe.talk.endswith("-mapped"):
            yield probe


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", HANDFUL)
def test_case(served: Lab, name: str, family: Family) -> None:
    check(served, probes(cases.case(name), family), "nftables")


@pytest.mark.parametrize(
    ("to", "error"),
    [
        ((cases.case("hairpin").vip("ClusterIP", 4), 9999), "ECONNREFUSED"),
        ((cases.case("hairpin").vip("ClusterIP", 6), 9999), "ECONNREFUSED"),
        (("10.96.99.99", 80), "TIMEOUT"),
        (("fd00:10:96::99:99", 80), "TIMEOUT"),
    ],
)
@pytest.mark.parametrize("client", ["bare1c", "client"])
def test_cluster_ips_that_no_service_has(served: Lab, client: str, to: tuple[str, int], error: str) -> None:
    [outcome] = served.places[client].request(Flow("tcp", to, 6 if ":" in to[0] else 4, TIMEOUT))
    assert outcome.error == error


# ---- changes under load ------------------------------------------------------------------------------------------


@pytest.fixture
def scene(lab: Lab) -> Scene:
    manifests.write(lab.directory / "manifests", "nodes", manifests.nodes())
    return Scene(lab, lab.directory / "manifests", Service(BOTH, type="NodePort"))


def put(scene: Scene, *places: str) -> None:
    scene.put(*places)
    sync(scene.lab, scene.directory)


def test_endpoints_change_under_load(scene: Scene) -> None:
    """A restarted proxier each time: no new connection is refused, none that holds breaks, UDP goes to living ones."""
    put(scene, "pod1a", "pod2a")
    place = scene.lab.places["pod1c"]
    families: tuple[Family, ...] = (4, 6)
    new = [place.load(scene.flow(family=family), hold=False, interval=0.005) for family in families]
    held = [place.load(scene.flow(family=family), hold=True, interval=0.005) for family in families]
    for places in (["pod1a", "pod1b", "pod2a"], ["pod2c"], ["pod1a"], ["pod1b", "pod2a"]):
        put(scene, *places)
        assert set(scene.shares(sockets=32)) == set(places)
    for load in (*new, *held):
        report = load.stop()
        assert report.errors == {}
        assert report.answered == report.sent > 10


@pytest.mark.parametrize("via", ["ClusterIP", "NodePort"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_udp_flow_leaves_an_endpoint_that_goes(scene: Scene, via: cases.Via, family: Family) -> None:
    """Rule 16."""
    put(scene, "pod1a")
    client = "client"
    flow = scene.flow(client=client, via=via, family=family, port=UDP)
    with scene.lab.places[client].load(flow, hold=True, interval=0.01) as load:
        wait_until(lambda: bool(scene.ask(client=client, via=via, family=family, port=UDP)[0].reply), 5, "it is served")
        put(scene, "pod2a")
        answered: Callable[[], bool] = lambda: "pod2a" in scene.shares(4, client=client, via=via, port=UDP)  # noqa: E731
        wait_until(answered, 5, "the other endpoint answers")
    report = load.stop()
    assert set(report.places) == {"pod1a", "pod2a"}
