"""What has to come out where packets are translated by netfilter rules: the lab's oracle, and in which points the
semantics ask for something else of a proxier without hooks.

Every client is judged by its packets, pods and nodes too. Source ranges bind all of them. Masquerading is by the
frontend and the client, wherever the endpoint is.
"""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address, ip_network

import msgspec

from bpfproxy.lab import oracle
from bpfproxy.lab.cases import Probe
from bpfproxy.lab.layout import NODES, PLACES, SPOTS, Spot
from bpfproxy.lab.oracle import Expected

_TWINS = {"pod1a": "bare1a", "pod1c": "bare1c", "pod2c": "bare2c"}
"""The same places to the oracle, without hooks."""


def expect(probe: Probe) -> Expected:
    """The expectation for one probe."""
    if probe.via == "localhost":
        return Expected("untouched")  # 14: at socket level alone
    expected = oracle.expect(msgspec.structs.replace(probe, client=_TWINS.get(probe.client, probe.client)))
    if expected.answer == "untouched":
        return expected
    if not _admitted(probe):
        return Expected("dropped", by_packet=True)
    if expected.answer == "unreachable":
        expected = dataclasses.replace(expected, answer="dropped")
    told = not probe.talk.startswith("udp-unconnected")
    sources = {place: source(probe, SPOTS[place]) for place in expected.places}
    return dataclasses.replace(expected, sources=sources, even=False, by_packet=True, told=told)


def masqueraded(probe: Probe, server: Spot) -> bool:
    """Whether the client's address is replaced by a node's."""
    client, case = PLACES[probe.client], probe.case
    if client.v4 == server.v4:
        return True  # 12
    if probe.via == "ClusterIP":
        return case.detector and client.kind != "pod"  # 7
    if case.service.external_policy == "Cluster":
        return True  # 8
    return client.kind == "node"  # 9


def source(probe: Probe, server: Spot) -> str:
    """Whom the server sees: a node that masquerades uses its address on the way to the server."""
    client = PLACES[probe.client]
    # What is delivered on the node itself does not leave it.
    if not masqueraded(probe, server) or server.name == client.entry:
        return client.address(probe.family)
    if server.node == client.entry:
        net = NODES[client.entry]
        return net.gateway4 if probe.family == 4 else net.gateway6
    return SPOTS[client.entry].address(probe.family)


def _bound(probe: Probe) -> bool:
    """By source ranges (13)."""
    return probe.via == "LoadBalancer" and any(ip_network(one).version == probe.family for one in _ranges(probe))


def _admitted(probe: Probe) -> bool:
    client = ip_address(PLACES[probe.client].address(probe.family))
    networks = [network for one in _ranges(probe) if (network := ip_network(one)).version == probe.family]
    return not _bound(probe) or any(client in network for network in networks)


def _ranges(probe: Probe) -> tuple[str, ...]:
    return probe.case.service.source_ranges
