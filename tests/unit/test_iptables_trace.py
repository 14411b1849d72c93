"""Every case of the lab, traced through the rules that two nodes would have: what comes out is what the lab's oracle
says, which knows the semantics and no rule.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from bpfproxy.lab import cases, oracle
from bpfproxy.lab.cases import Agents, Case, Probe
from bpfproxy.lab.layout import NODES, Family
from bpfproxy.netfilter.writer import RuleWriter
from bpfproxy.proxiers.base import Op
from bpfproxy.proxiers.iptables import lifecycle, names, rows
from bpfproxy.proxiers.iptables.rows import FlowsKey, KubeLayout, SysctlKey
from tests.unit import lab_traces
from tests.unit.lab_traces import FAMILIES, Packet, packet_of
from tests.unit.simtables import SimIptables
from tests.unit.tracer import Tracer


@cache
def tracers(directory: Path, node: str, agents: Agents) -> dict[Family, Tracer]:
    """All cases on one node."""
    plan = lab_traces.plan(directory, node, agents)
    renderer = lifecycle.renderer(lab_traces.settings(directory, node, agents, "iptables"))
    wanted = {key: row for one in plan.services.values() for key, row in renderer.render(one).items()}
    wanted.update(renderer.render_node(plan.node))
    kernel = {family: SimIptables(family) for family in FAMILIES}
    ops = sorted((Op(key, row) for key, row in wanted.items()), key=rows.phase)
    ops = [op for op in ops if not isinstance(op.key, FlowsKey | SysctlKey)]
    assert RuleWriter(kernel, KubeLayout()).apply([(op.key, op.row) for op in ops]) == []
    return {family: Tracer(kernel[family].tables, lab_traces.own_addresses(node)) for family in FAMILIES}


def trace(directory: Path, probe: Probe, sent: Packet | None = None) -> set[Packet]:
    tracer = tracers(directory, probe.entry, probe.case.agents)[probe.family]
    way = tracer.from_node if lab_traces.from_node(probe) else tracer.from_outside
    return way(sent or packet_of(probe))


@pytest.mark.parametrize("case", cases.load(), ids=lambda case: case.name)
def test_case(all_cases: Path, case: Case) -> None:
    found = [
        line
        for probe in lab_traces.probes(case)
        for line in lab_traces.differences(probe, "iptables", trace(all_cases, probe))
    ]
    assert not found, "\n" + "\n".join(found)


# ---- what takes more than one packet -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_rule_15_a_client_keeps_its_endpoint_by_all_frontends(all_cases: Path, family: Family) -> None:
    case = cases.case("affinity")
    for probe in (*cases.probes(case, family), *cases.outside_probes(case, family)):
        if oracle.expect(probe, "iptables").answer != "answered" or (probe.via, probe.family) == ("localhost", 6):
            continue
        for first in trace(all_cases, probe):
            for again in (*cases.probes(case, family), *cases.outside_probes(case, family)):
                if (again.client, again.port) != (probe.client, probe.port) or oracle.expect(
                    again, "iptables"
                ).answer != "answered":
                    continue
                if (again.via == "localhost") != (probe.via == "localhost"):
                    continue  # the source is another one there
                sent = packet_of(again)
                sent = Packet(sent.source, sent.to, sent.protocol, remembered=first.remembered)
                assert {one.to for one in trace(all_cases, again, sent)} == {first.to}


def test_marks_are_off_when_a_packet_leaves(all_cases: Path) -> None:
    for probe in cases.probes(cases.case("node-port"), 4):
        assert all(one.mark & 0x4000 == 0 for one in trace(all_cases, probe) if one.masqueraded)


def test_rule_20_shares_are_even() -> None:
    """1/(n-i) for each rule in turn gives every endpoint 1/n."""
    probabilities = [float(f"{1 / left:0.10f}") for left in range(7, 0, -1)]
    remaining, shares = 1.0, []
    for one in probabilities:
        shares.append(remaining * one)
        remaining *= 1 - one
    assert shares == pytest.approx([1 / 7] * 7)


@pytest.mark.parametrize("node", list(NODES))
def test_jump_to_node_ports_is_last(all_cases: Path, node: str) -> None:
    for tracer in tracers(all_cases, node, Agents()).values():
        targets = [rule.target for rule in tracer.tables["nat"][names.SERVICES].rules]
        assert targets.index(names.NODEPORTS) == len(targets) - 1
