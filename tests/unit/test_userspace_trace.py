"""Every case of the lab, traced through the redirects of two nodes: to the listener that serves the frontend with the
right backends, or to none. What the relaying process does then is no rule's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from bpfproxy.lab import cases, oracle
from bpfproxy.lab.cases import Agents, Case, Probe
from bpfproxy.lab.layout import SPOTS, Family
from bpfproxy.model.address import ANY4, ANY6, format_address, parse_address
from bpfproxy.model.frontend import Frontend
from bpfproxy.proxiers.nftables.rows import ChainRow, Hook
from bpfproxy.proxiers.userspace import lifecycle, redirect
from bpfproxy.proxiers.userspace.rows import Inside, NodeAddress, PortalRow
from tests.unit import lab_traces
from tests.unit.lab_traces import FAMILIES, LOOPBACK, Packet, packet_of
from tests.unit.rule_tracer import Tracer

FIRST_LISTENER = 40000
PRIORITIES = {"dstnat": -100, "filter": 0}


class Table:
    """What commands of nft make of a table."""

    def __init__(self, commands: Iterable[str]) -> None:
        self.chains: dict[str, ChainRow] = {}
        self.elements: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for line in commands:
            verb, kind, family, table, *rest = line.split(" ", 5)
            assert (family, table) == (redirect.FAMILY, redirect.TABLE)
            self._do(f"{verb} {kind}", *rest)

    def _do(self, what: str, name: str, body: str = "") -> None:
        match what:
            case "add chain":
                self.chains.setdefault(name, ChainRow((), _hook(body)))
            case "flush chain":
                self.chains[name] = ChainRow((), self.chains[name].hook)
            case "add rule":
                chain = self.chains[name]
                self.chains[name] = ChainRow((*chain.rules, body), chain.hook)
            case "add element":
                key, _, verdict = body.strip("{ }").partition(" : ")
                self.elements[name][key] = verdict
            case "add table" | "add set" | "add map":
                pass
            case _:
                raise ValueError(f"no command that a new table needs: {what}")


def _hook(body: str) -> Hook | None:
    if not body:
        return None
    found = re.fullmatch(r"\{ type (\w+) hook (\w+) priority (\S+) ; \}", body)
    assert found, body
    return Hook(found[1], found[2], PRIORITIES[found[3]] if found[3] in PRIORITIES else int(found[3]))


@dataclass(frozen=True)
class Node:
    """One that serves all cases."""

    tracers: dict[Family, Tracer]
    portals: dict[int, tuple[Frontend, PortalRow]]
    """By their listeners' ports."""


@cache
def node_of(directory: Path, name: str, agents: Agents) -> Node:
    plan = lab_traces.plan(directory, name, agents)
    renderer = lifecycle.renderer(lab_traces.settings(directory, name, agents, "userspace"))
    rows = dict(renderer.render_node(plan.node))
    for service in plan.services.values():
        rows |= renderer.render(service)
    commands, portals = redirect.base(), {}
    for number, (key, row) in enumerate(rows.items(), FIRST_LISTENER):
        if isinstance(key, NodeAddress | Inside):
            commands.append(redirect.set_node(key, present=True))
        else:
            listener = number if row.backends else 0
            portals[listener] = (key, row)
            commands += redirect.put(key, redirect.way(row, listener), None)
    table = Table(commands)
    local = lab_traces.own_addresses(name) | set(LOOPBACK.values())
    return Node({family: Tracer(table.chains, table.elements, local) for family in FAMILIES}, portals)


def differences(directory: Path, probe: Probe) -> list[str]:
    node = node_of(directory, probe.entry, probe.case.agents)
    packet, expected = packet_of(probe), oracle.expect(probe, "userspace")
    ends = node.tracers[probe.family].trace(packet, from_node=lab_traces.from_node(probe))
    if not lab_traces.passes(expected):
        return lab_traces.turned_away(probe, expected, ends)
    [end] = ends
    if end.verdict != "ACCEPT" or not end.translated:
        return [f"{probe}: {end}, not {expected.answer}"]
    found = []
    frontend, row = node.portals[end.to[1]]
    if (frontend.port, frontend.protocol.name.lower(), frontend.family) != (
        packet.to[1],
        packet.protocol,
        packet.family,
    ):
        found.append(f"{probe}: to the listener of {frontend}")
    if frontend.address not in (parse_address(packet.to[0]), ANY4, ANY6):
        found.append(f"{probe}: to the listener of {frontend}")
    servers = {(SPOTS[place].address(probe.family), expected.port) for place in expected.places | expected.lost}
    backends = {(format_address(one.address), one.port) for one in row.backends}
    if backends != servers:
        found.append(f"{probe}: {sorted(backends)}, not {sorted(servers)}")
    return found


@pytest.mark.parametrize("case", cases.load(), ids=lambda case: case.name)
def test_case(all_cases: Path, case: Case) -> None:
    found = [line for probe in lab_traces.probes(case) for line in differences(all_cases, probe)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_who_knocks_at_a_listener_is_dropped(all_cases: Path, family: Family) -> None:
    node = node_of(all_cases, "node1", Agents())
    listeners = {(port, one.protocol) for port, (one, _) in node.portals.items() if port and one.family == family}
    assert listeners
    for port, protocol in listeners:
        packet = Packet(SPOTS["client"].address(family), (SPOTS["node1"].address(family), port), protocol.name.lower())
        assert {one.verdict for one in node.tracers[family].trace(packet, from_node=False)} == {"DROP"}
