"""Each case of the lab, traced through the rendered rows: every client, every frontend, both families."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from bpfproxy.lab import cases
from bpfproxy.lab.cases import Agents, Case, Probe, Via
from bpfproxy.lab.layout import Family
from bpfproxy.proxiers.nftables import lifecycle
from bpfproxy.proxiers.nftables.rows import ChainKey, ChainRow, ElementKey, ElementRow
from tests.unit import lab_traces
from tests.unit.lab_traces import FAMILIES, LOOPBACK, packet_of
from tests.unit.rule_tracer import Tracer

VIAS: tuple[Via, ...] = ("ClusterIP", "NodePort", "ExternalIP", "LoadBalancer")


@cache
def tracers(directory: Path, node: str, agents: Agents) -> dict[Family, Tracer]:
    """All cases on one node."""
    plan = lab_traces.plan(directory, node, agents)
    renderer = lifecycle.renderer(lab_traces.settings(directory, node, agents, "nftables"))
    rows = dict(renderer.render_node(plan.node))
    for service in plan.services.values():
        rows |= renderer.render(service)
    chains: defaultdict[Family, dict[str, ChainRow]] = defaultdict(dict)
    elements: dict[Family, defaultdict[str, dict[str, str]]] = {family: defaultdict(dict) for family in FAMILIES}
    for key, row in rows.items():
        if isinstance(key, ChainKey) and isinstance(row, ChainRow):
            chains[key.family][key.name] = row
        elif isinstance(key, ElementKey) and isinstance(row, ElementRow):
            elements[key.family][key.set][key.element] = row.verdict
    local = lab_traces.own_addresses(node) | set(LOOPBACK.values())
    return {family: Tracer(chains[family], elements[family], local) for family in FAMILIES}


@pytest.mark.parametrize("case", cases.load(), ids=lambda case: case.name)
def test_case(all_cases: Path, case: Case) -> None:
    found = []
    for probe in lab_traces.probes(case):
        tracer = tracers(all_cases, probe.entry, case.agents)[probe.family]
        ends = tracer.trace(packet_of(probe), from_node=lab_traces.from_node(probe))
        found += lab_traces.differences(probe, "nftables", ends)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_affinity_is_shared_by_all_frontends(all_cases: Path, family: Family) -> None:
    case = cases.case("affinity")
    tracer = tracers(all_cases, "node1", Agents())[family]
    ends = []
    for via in VIAS:
        packet = packet_of(Probe(case, via, case.service.ports[0], "client", family, "tcp"))
        firsts = tracer.trace(packet, from_node=False)
        assert len(firsts) == 4
        first = min(firsts, key=lambda one: one.to)
        [again] = tracer.trace(replace(packet, remembered=first.remembered), from_node=False)
        assert again.to == first.to
        ends.append((first.remembered, first.to))
    assert len(set(ends)) == 1
