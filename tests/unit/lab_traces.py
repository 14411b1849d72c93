"""The cases of the lab as packets, and what has become of these against what the lab's oracle says: it knows the
semantics and no rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal

from bpfproxy.api import Plan, plan_manifests
from bpfproxy.config import ProxyMode, Settings
from bpfproxy.lab import cases, manifests, oracle
from bpfproxy.lab.cases import Agents, Case, Probe
from bpfproxy.lab.layout import NODES, PLACES, SPOTS, Family
from bpfproxy.lab.oracle import Expected
from tests.unit.manifests import lab_nodes

FAMILIES: tuple[Family, ...] = (4, 6)
LOOPBACK: dict[Family, str] = {4: "127.0.0.1", 6: "::1"}
LOOPBACKS: dict[Family, str] = {4: "127.0.0.0/8", 6: "::1/128"}
PLACE_OF = {spot.address(family): spot for spot in SPOTS.values() for family in FAMILIES}

Verdict = Literal["ACCEPT", "DROP", "REJECT"]


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection, as it is at some place on its way."""

    source: str
    to: tuple[str, int]
    protocol: str
    mark: int = 0
    verdict: Verdict = "ACCEPT"
    translated: bool = False
    masqueraded: bool = False
    remembered: frozenset[str] = frozenset()
    """Names of `recent` lists that its source is on."""

    @property
    def family(self) -> Family:
        return 6 if ":" in self.source else 4


@cache
def within(address: str, network: str) -> bool:
    """Whether an address is in a network, or is it."""
    return ip_address(address) in ip_network(network)


def write_cases(directory: Path) -> Path:
    """The manifests of all cases."""
    manifests.write(directory, "nodes", lab_nodes())
    for case in cases.load():
        manifests.write(directory, case.name, manifests.objects(case))
    return directory


def settings(directory: Path, node: str, agents: Agents, mode: ProxyMode) -> Settings:
    """Those of a node's agent."""
    return Settings(
        manifests=(directory,),
        node_name=node,
        cluster_cidr=agents.cluster_cidrs,
        nodeport_addresses=agents.nodeport_addresses,
        masquerade_all=agents.masquerade_all,
        proxy_mode=mode,
    )


@cache
def plan(directory: Path, node: str, agents: Agents) -> Plan:
    """What a node that serves all cases should do, whatever its mode."""
    return plan_manifests(settings(directory, node, agents, "ebpf"))


def own_addresses(node: str) -> frozenset[str]:
    """A node's, without those of Services and the loopback device."""
    net, spot = NODES[node], SPOTS[node]
    return frozenset({net.gateway4, net.gateway6, spot.v4, spot.v6})


def probes(case: Case) -> Iterator[Probe]:
    """All traffic of a case."""
    for family in FAMILIES:
        yield from cases.outside_probes(case, family)
        yield from cases.probes(case, family)


def from_node(probe: Probe) -> bool:
    """Whether the node that judges it sends it itself."""
    return PLACES[probe.client].name == probe.entry


def packet_of(probe: Probe) -> Packet:
    """Its first packet."""
    source = LOOPBACK[probe.family] if probe.via == "localhost" else PLACES[probe.client].address(probe.family)
    to = probe.case.frontend(probe.via, probe.port, probe.client, probe.family)
    return Packet(source, to, probe.port.protocol.lower())


def passes(expected: Expected) -> bool:
    """Whether packets are to come to servers, whatever those or the way back make of them."""
    return expected.answer == "answered" or bool(expected.lost)


def turned_away(probe: Probe, expected: Expected, ends: Set[Packet]) -> list[str]:
    """What is wrong with the ends of a packet that is not to come to a server."""
    verdicts: set[str] = {one.verdict for one in ends}
    wanted = {"untouched": {"ACCEPT"}, "refused": {"REJECT"}, "dropped": {"DROP"}}[expected.answer]
    if (expected.answer, probe.via, probe.family) == ("untouched", "localhost", 6):
        wanted = verdicts  # NodePorts are of no use there in most modes, and open to none either
    wrong = not verdicts <= wanted or any(one.translated for one in ends)
    return [f"{probe}: {ends}, not {expected.answer}"] if wrong else []


def differences(probe: Probe, mode: ProxyMode, ends: Set[Packet], vips: Set[str] = frozenset()) -> list[str]:
    """What is wrong with the ends of a packet that rules translate. `vips`: addresses that several nodes have."""
    expected = oracle.expect(probe, mode)
    if not passes(expected):
        return turned_away(probe, expected, ends)
    if {one.verdict for one in ends} != {"ACCEPT"} or not all(one.translated for one in ends):
        return [f"{probe}: {ends}, not {expected.answer}"]
    seen, wanted = {one.to for one in ends}, expected.places | expected.lost
    if seen != {(SPOTS[place].address(probe.family), expected.port) for place in wanted}:
        return [f"{probe}: {sorted(seen)}, not {expected.port} of {sorted(wanted)}"]
    found = []
    for one in ends:
        server = PLACE_OF[one.to[0]]
        masqueraded = oracle.masquerades(probe, server, mode) or (one.source in vips and server.name != probe.entry)
        if one.masqueraded != masqueraded:
            found.append(f"{probe} to {server.name}: masqueraded {one.masqueraded}")
        # The rule for hairpins comes before the one that takes the mark off: such packets stay on the node.
        hairpin = mode == "ipvs" and one.source == one.to[0]
        if one.mark and server.name != probe.entry and not hairpin:
            found.append(f"{probe} to {server.name}: it leaves with mark {one.mark:#x}")
    return found
