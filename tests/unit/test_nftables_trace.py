"""Each case of the lab, traced through the rendered rows: every client, every frontend, both families."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from bpfproxy.api import plan_manifests
from bpfproxy.config import Settings
from bpfproxy.lab import cases, manifests, oracle
from bpfproxy.lab.cases import Agents, Case, Probe, Via
from bpfproxy.lab.layout import NODES, PLACES, SPOTS, Family
from bpfproxy.proxiers.base import Rows
from bpfproxy.proxiers.nftables import lifecycle
from tests.unit.manifests import lab_nodes
from tests.unit.rule_tracer import Packet, Tracer

FAMILIES: tuple[Family, ...] = (4, 6)
VIAS: tuple[Via, ...] = ("ClusterIP", "NodePort", "ExternalIP", "LoadBalancer")
ANSWERS = {"refused": "reject", "dropped": "drop", "untouched": ""}


@cache
def rendered(directory: Path, node: str, agents: Agents) -> Rows:
    """The rows of a node that serves all cases."""
    manifests.write(directory, "nodes", lab_nodes())
    for case in cases.load():
        manifests.write(directory, case.name, manifests.objects(case))
    settings = Settings(
        manifests=(directory,),
        node_name=node,
        cluster_cidr=agents.cluster_cidrs,
        nodeport_addresses=agents.nodeport_addresses,
        masquerade_all=agents.masquerade_all,
    )
    plan, renderer = plan_manifests(settings), lifecycle.renderer(settings)
    rows = dict(renderer.render_node(plan.node))
    for service in plan.services.values():
        rows |= renderer.render(service)
    return rows


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manifests")


def probes(case: Case, family: Family) -> Iterator[Probe]:
    yield from cases.outside_probes(case, family)
    yield from cases.probes(case, family)


def local(node: str, family: Family) -> frozenset[str]:
    net = NODES[node]
    if family == 4:
        return frozenset({SPOTS[node].v4, net.gateway4, "127.0.0.1"})
    return frozenset({SPOTS[node].v6, net.gateway6, "::1"})


def packet_of(probe: Probe) -> Packet:
    address, port = probe.case.frontend(probe.via, probe.port, probe.client, probe.family)
    source = PLACES[probe.client].address(probe.family)
    return Packet(source, address, probe.port.protocol.lower(), port)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", cases.load(), ids=lambda case: case.name)
def test_case(directory: Path, case: Case, family: Family) -> None:
    for probe in probes(case, family):
        tracer = Tracer(rendered(directory, probe.entry, case.agents), family, local(probe.entry, family))
        expected = oracle.expect(probe, "nftables")
        fates = tracer.trace(packet_of(probe), from_node=probe.client == probe.entry)
        if expected.answer != "answered" and not expected.lost:
            assert {(fate.verdict, fate.translated) for fate in fates} == {(ANSWERS[expected.answer], False)}, probe
            continue
        assert {fate.verdict for fate in fates} == {""}, probe
        seen = {(fate.destination, fate.port): fate.masqueraded for fate in fates}
        servers = {place: SPOTS[place] for place in expected.places | expected.lost}
        assert seen == {
            (server.address(family), expected.port): oracle.masquerades(probe, server, "nftables")
            for server in servers.values()
        }, probe
        assert {fate.mark for fate in fates if fate.destination not in tracer.local} <= {0}, probe


@pytest.mark.parametrize("family", FAMILIES)
def test_affinity_is_shared_by_all_frontends(directory: Path, family: Family) -> None:
    case = cases.case("affinity")
    client = SPOTS["client"].address(family)
    ends = []
    for via in VIAS:
        tracer = Tracer(rendered(directory, "node1", Agents()), family, local("node1", family))
        packet = packet_of(Probe(case, via, case.service.ports[0], "client", family, "tcp"))
        assert len(tracer.trace(packet, from_node=False)) == 4
        sets = sorted(tracer.affinities)
        assert len(sets) == 4
        tracer.affinities = {sets[0]: {client}}
        [fate] = tracer.trace(packet, from_node=False)
        ends.append(fate.destination)
    assert len(set(ends)) == 1
