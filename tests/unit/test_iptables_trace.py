"""Every case of the lab, traced through the rules that two nodes would have: what comes out is what the lab's oracle
says, which knows the semantics and no rule.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from bpfproxy.api import plan_manifests
from bpfproxy.config import Settings
from bpfproxy.lab import cases, manifests, oracle
from bpfproxy.lab.cases import Agents, Case, Probe
from bpfproxy.lab.layout import NODES, PLACES, SPOTS, Family
from bpfproxy.netfilter.writer import RuleWriter
from bpfproxy.proxiers.base import Op
from bpfproxy.proxiers.iptables import lifecycle, names, rows
from bpfproxy.proxiers.iptables.rows import FlowsKey, KubeLayout, SysctlKey
from tests.unit.manifests import lab_nodes
from tests.unit.simtables import SimIptables
from tests.unit.tracer import Outcome, Packet, Tracer

FAMILIES: tuple[Family, ...] = (4, 6)
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("manifests")
    manifests.write(made, "nodes", lab_nodes())
    for case in cases.load():
        manifests.write(made, case.name, manifests.objects(case))
    return made


@cache
def tracers(directory: Path, node: str, agents: Agents) -> dict[Family, Tracer]:
    """All cases on one node."""
    settings = Settings(
        manifests=(directory,),
        node_name=node,
        cluster_cidr=agents.cluster_cidrs,
        nodeport_addresses=agents.nodeport_addresses,
        masquerade_all=agents.masquerade_all,
        proxy_mode="iptables",
    )
    plan = plan_manifests(settings)
    renderer = lifecycle.renderer(settings)
    wanted = {key: row for one in plan.services.values() for key, row in renderer.render(one).items()}
    wanted.update(renderer.render_node(plan.node))
    kernel = {family: SimIptables(family) for family in FAMILIES}
    ops = sorted((Op(key, row) for key, row in wanted.items()), key=rows.phase)
    ops = [op for op in ops if not isinstance(op.key, FlowsKey | SysctlKey)]
    assert RuleWriter(kernel, KubeLayout()).apply([(op.key, op.row) for op in ops]) == []
    net, spot = NODES[node], SPOTS[node]
    addresses = frozenset({net.gateway4, net.gateway6, spot.v4, spot.v6})
    return {family: Tracer(kernel[family].tables, addresses) for family in FAMILIES}


def packet(probe: Probe) -> Packet:
    source = LOOPBACK[probe.family] if probe.via == "localhost" else PLACES[probe.client].address(probe.family)
    to = probe.case.frontend(probe.via, probe.port, probe.client, probe.family)
    return Packet(source, to, probe.port.protocol.lower())


def trace(directory: Path, probe: Probe, sent: Packet | None = None) -> set[Outcome]:
    client = PLACES[probe.client]
    tracer = tracers(directory, probe.entry, probe.case.agents)[probe.family]
    way = tracer.from_node if client.name == probe.entry else tracer.from_outside
    return way(sent or packet(probe))


PLACE_OF = {spot.address(family): spot for spot in SPOTS.values() for family in FAMILIES}


def differences(directory: Path, probe: Probe) -> list[str]:
    expected = oracle.expect(probe, "iptables")
    answer, places = "answered" if expected.lost else expected.answer, expected.places | expected.lost
    outcomes = trace(directory, probe)
    if probe.via == "localhost" and probe.family == 6:  # 14: at socket level alone
        return [f"{probe}: translated" for one in outcomes if one.packet.translated]
    verdicts = {one.verdict for one in outcomes}
    if answer in ("refused", "dropped"):
        wanted = {"REJECT" if answer == "refused" else "DROP"}
        return [f"{probe}: {verdicts}, not {wanted}"] if verdicts != wanted else []
    if verdicts != {"ACCEPT"}:
        return [f"{probe}: {verdicts}, not {answer}"]
    if answer == "untouched":
        return [f"{probe}: translated to {one.packet.to}" for one in outcomes if one.packet.translated]
    seen = {PLACE_OF[one.packet.to[0]].name for one in outcomes if one.packet.translated}
    if seen != places or not all(one.packet.translated for one in outcomes):
        return [f"{probe}: {sorted(seen)}, not {sorted(places)}"]
    found = [f"{probe}: port {one.packet.to[1]}" for one in outcomes if one.packet.to[1] != probe.port.target]
    for one in outcomes:
        server = PLACE_OF[one.packet.to[0]]
        if one.packet.masqueraded != oracle.masquerades(probe, server, "iptables"):
            found.append(f"{probe} to {server.name}: masqueraded {one.packet.masqueraded}")
    return found


@pytest.mark.parametrize("case", cases.load(), ids=lambda case: case.name)
def test_case(directory: Path, case: Case) -> None:
    found = [
        line
        for family in FAMILIES
        for probe in (*cases.probes(case, family), *cases.outside_probes(case, family))
        for line in differences(directory, probe)
    ]
    assert not found, "\n" + "\n".join(found)


# ---- what takes more than one packet -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_rule_15_a_client_keeps_its_endpoint_by_all_frontends(directory: Path, family: Family) -> None:
    case = cases.case("affinity")
    for probe in (*cases.probes(case, family), *cases.outside_probes(case, family)):
        if oracle.expect(probe, "iptables").answer != "answered" or (probe.via, probe.family) == ("localhost", 6):
            continue
        for first in trace(directory, probe):
            for again in (*cases.probes(case, family), *cases.outside_probes(case, family)):
                if (again.client, again.port) != (probe.client, probe.port) or oracle.expect(
                    again, "iptables"
                ).answer != "answered":
                    continue
                if (again.via == "localhost") != (probe.via == "localhost"):
                    continue  # the source is another one there
                sent = packet(again)
                sent = Packet(sent.source, sent.to, sent.protocol, remembered=first.packet.remembered)
                assert {one.packet.to for one in trace(directory, again, sent)} == {first.packet.to}


def test_marks_are_off_when_a_packet_leaves(directory: Path) -> None:
    for probe in cases.probes(cases.case("node-port"), 4):
        assert all(one.packet.mark & 0x4000 == 0 for one in trace(directory, probe) if one.packet.masqueraded)


def test_rule_20_shares_are_even() -> None:
    """1/(n-i) for each rule in turn gives every endpoint 1/n."""
    probabilities = [float(f"{1 / left:0.10f}") for left in range(7, 0, -1)]
    remaining, shares = 1.0, []
    for one in probabilities:
        shares.append(remaining * one)
        remaining *= 1 - one
    assert shares == pytest.approx([1 / 7] * 7)


@pytest.mark.parametrize("node", list(NODES))
def test_jump_to_node_ports_is_last(directory: Path, node: str) -> None:
    for tracer in tracers(directory, node, Agents()).values():
        targets = [rule.target for rule in tracer.tables["nat"][names.SERVICES].rules]
        assert targets.index(names.NODEPORTS) == len(targets) - 1
