"""What the lab's oracle says, where netfilter serves all clients: no hook sees any, so all are clients whose packets
are translated on the way. Written from the semantics, whose rules the numbers are.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from bpfproxy.lab import oracle
from bpfproxy.lab.cases import Probe
from bpfproxy.lab.layout import NODES, PLACES, SPOTS, Spot
from bpfproxy.lab.oracle import Answer, Expected


def expect(probe: Probe) -> Expected:
    """What a client and the servers see."""
    answer, places = answer_of(probe)
    found = oracle.expect(probe)
    if answer != "answered":
        # An unconnected socket is not told of ICMP errors.
        told = not probe.talk.startswith("udp-unconnected")
        return Expected(answer, told=told, by_packet=True)
    sources = {place: _source(probe, SPOTS[place]) for place in places}
    return replace(found, sources=sources, by_packet=True, even=False)


def answer_of(probe: Probe) -> tuple[Answer, frozenset[str]]:
    """(answer, places)."""
    found = oracle.expect(probe)
    if found.answer in ("answered", "dropped") and not _in_ranges(probe):
        return "dropped", frozenset()
    if found.answer == "unreachable":
        return "dropped", frozenset()  # what a hook says of a drop
    return found.answer, found.places


def _in_ranges(probe: Probe) -> bool:
    """13, for whoever it is; at socket level clients in the cluster are free."""
    ranges = [one for one in map(ip_network, probe.case.service.source_ranges) if one.version == probe.family]
    if not ranges or probe.via != "LoadBalancer":
        return True
    return any(ip_address(PLACES[probe.client].address(probe.family)) in one for one in ranges)


def is_masqueraded(probe: Probe, server: Spot) -> bool:
    client, case = PLACES[probe.client], probe.case
    if server.kind == "node" and server.node == client.entry and client.kind != "node":
        return False  # delivered here: nothing is sent on
    if client.v4 == server.v4 and client.kind == "pod":
        return True  # 12
    pod = client.kind == "pod" and case.detector
    if probe.via == "ClusterIP":
        return case.detector and not pod  # 7
    return case.service.external_policy == "Cluster" or client.kind == "node"  # 8, 9


def is_told_at_once(probe: Probe, expected: Expected) -> bool:
    """Whether a socket gets EPERM because its packet does not leave the node that sends it. TCP takes no notice."""
    turned_away = expected.answer in ("refused", "dropped") and PLACES[probe.client].kind == "node"
    return turned_away and probe.talk.startswith("udp") and probe.via not in ("NodePort", "localhost")


def _source(probe: Probe, server: Spot) -> str:
    """Masquerading gives the address of the device by which the packet leaves."""
    client = PLACES[probe.client]
    if not is_masqueraded(probe, server):
        return client.address(probe.family)
    net = NODES[client.entry]
    if server.kind == "pod" and server.node == client.entry:
        return net.gateway4 if probe.family == 4 else net.gateway6
    return SPOTS[client.entry].address(probe.family)
