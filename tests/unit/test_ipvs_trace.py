"""Every case of the lab, traced through what the ipvs proxier writes on two nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bpfproxy.diff import diff
from bpfproxy.lab import cases
from bpfproxy.lab.cases import Case, Probe
from bpfproxy.lab.layout import NODES, Family
from bpfproxy.model.address import format_address, parse_address
from bpfproxy.model.service import ObjectName
from bpfproxy.netfilter.writer import RuleWriter
from bpfproxy.proxiers.ipvs import lifecycle
from bpfproxy.proxiers.ipvs.chains import Layout
from tests.unit import ipvs_world, lab_traces
from tests.unit.ipvs_tracer import IpvsTracer
from tests.unit.lab_traces import FAMILIES, Packet, packet_of
from tests.unit.simkernel import SimKernel
from tests.unit.simtables import SimIptables


def tracers(directory: Path, node: str, case: Case) -> dict[Family, IpvsTracer]:
    """One case on one node: each alone, as one of them has an address of the other node for a VIP."""
    plan = lab_traces.plan(directory, node, case.agents)
    renderer = lifecycle.renderer(lab_traces.settings(directory, node, case.agents, "ipvs"))
    wanted = dict(renderer.render_node(plan.node))
    service = plan.services.get(ObjectName(f"case-{case.name}", "web"))
    if service is not None:
        wanted.update(renderer.render(service))
    addresses, kernel = lab_traces.own_addresses(node), SimKernel()
    kernel.others = {parse_address(one) for one in addresses}
    tables = {family: SimIptables(family) for family in FAMILIES}
    proxier = ipvs_world.proxier(renderer, kernel, RuleWriter(tables, Layout()), {})
    assert proxier.apply(diff({}, wanted, proxier.phase)) == []
    addresses |= {format_address(vip) for vip in kernel.vips}
    return {family: IpvsTracer(tables[family].tables, addresses, kernel.sets, kernel=kernel) for family in FAMILIES}


def sent(probe: Probe, tracer: IpvsTracer) -> Packet:
    """A node reaches its own addresses, VIPs among them, from those."""
    packet = packet_of(probe)
    own = lab_traces.from_node(probe) and tracer.is_local(packet.to[0])
    return replace(packet, source=packet.to[0]) if own else packet


@pytest.mark.parametrize("case", cases.load(), ids=lambda case: case.name)
def test_case(all_cases: Path, case: Case) -> None:
    on = {node: tracers(all_cases, node, case) for node in NODES}
    found = []
    for probe in lab_traces.probes(case):
        tracer = on[probe.entry][probe.family]
        way = tracer.from_node if lab_traces.from_node(probe) else tracer.from_outside
        vips = {format_address(vip) for vip in tracer.kernel.vips}
        found += lab_traces.differences(probe, "ipvs", way(sent(probe, tracer)), vips)
    assert not found, "\n" + "\n".join(found)
