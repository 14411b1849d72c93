"""Where the node forwards by itself it is a router: it tells senders that hops ran out, or that a packet is too big."""

from __future__ import annotations

from typing import Any

import pytest

from bpfproxy.model.address import parse_address
from bpfproxy.model.frontend import FrontendKind
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.ebpf import packet
from tests.packet import packets as pk
from tests.packet.datapath import (
    CLIENT,
    NARROW_POD,
    NODE,
    REMOTE_POD,
    VIP,
    Datapath,
    Layer,
    Service,
    backend,
    frontend,
)
from tests.packet.packets import Ether, Raw, frame, network, same
from tests.packet.test_flows import ends
from tests.packet.test_forward import ARRIVES, HOOK, families, protocols, service
from tests.packet.test_icmp import packet as about
from tests.packet.test_icmp import too_big
from tests.packet.test_shapes import fragments

layers = pytest.mark.parametrize("layer", ["xdp", "tc"])
ANSWERED = {"xdp": pk.XDP_TX, "tc": pk.TC_REDIRECT}
UPLINK = {4: "192.0.2.77", 6: "2001:db8:0:2::77"}


def error(
    family: int, kind: str, request: bytes, sender: str, macs: tuple[str, str] = (pk.UP_MAC, pk.ROUTER_MAC)
) -> bytes:
    """What a router says of `request`: quotes its headers and 8 bytes more."""
    inner = request[14:][: (20 if family == 4 else 40) + 8]
    receiver = Ether(request).payload.src
    message: Any
    match kind, family:
        case "hops", 4:
            message = pk.ICMP(type=11, code=0)
        case "hops", 6:
            message = pk.ICMPv6TimeExceeded(code=0)
        case "too big", 4:
            message = pk.ICMP(type=3, code=4, nexthopmtu=1280)
        case _:
            message = pk.ICMPv6PacketTooBig(mtu=1280)
    outer = network(sender, receiver)
    if family == 4:
        outer.id = 0
    return bytes(Ether(src=macs[0], dst=macs[1]) / outer / message / Raw(inner))


@layers
@families
@protocols
@pytest.mark.parametrize("hops", [0, 1])
def test_hops_run_out(dp: Datapath, layer: Layer, family: int, protocol: Protocol, hops: int) -> None:
    """In both directions, for new flows and known ones; the sender is told, by the node."""
    dp.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=False))
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (REMOTE_POD[family], 8080)
    late = frame(protocol, client, vip, hops=hops)
    for _ in range(2):
        out = dp.run(ARRIVES[layer], late)
        assert out.verdict == ANSWERED[layer]
        same(out.packet, error(family, "hops", late, NODE[family]))
    node, _ = ends(dp.run(ARRIVES[layer], frame(protocol, client, vip, hops=2)).packet)
    late = frame(protocol, pod, node, hops=hops, macs=(pk.REMOTE_MAC, pk.UP_MAC))
    out = dp.run(ARRIVES[layer], late)
    assert out.verdict == ANSWERED[layer]
    same(out.packet, error(family, "hops", late, NODE[family], (pk.UP_MAC, pk.REMOTE_MAC)))
    assert dp.counted() == {f"{HOOK[layer]}.TTL": 3, f"{HOOK[layer]}.REUSED": 1}


@layers
@families
def test_the_arriving_device_gives_the_address(dp: Datapath, layer: Layer, family: int) -> None:
    """As with any router; the node's main address is for devices without one of their own."""
    row = packet.encode_device(address4=parse_address(UPLINK[4]), address6=parse_address(UPLINK[6]))
    up = dp.ifindex("up0")
    dp.maps["devices"].update(up.to_bytes(4, "little"), row)
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.TCP, local=False))
    late = frame(Protocol.TCP, (CLIENT[family], 40000), (VIP[family], 80), hops=1)
    out = dp.run(ARRIVES[layer], late, ifindex=up)
    same(out.packet, error(family, "hops", late, UPLINK[family]))


@layers
@families
def test_hops_of_errors_and_of_further_fragments_are_not_answered(dp: Datapath, layer: Layer, family: int) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.UDP, local=False))
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (REMOTE_POD[family], 8080)
    first, later, last = fragments(family, Protocol.UDP, client, vip, hops=1)
    for raw in (first, later, last):
        dp.run(ARRIVES[layer], raw)
    node, _ = ends(dp.run(ARRIVES[layer], frame(Protocol.UDP, client, vip)).packet)
    dp.clear_counters()
    for raw in (
        later,
        last,
        too_big(pod[0], node[0], about(Protocol.UDP, node, pod), 8, hops=1),
        too_big(
            "203.0.113.9" if family == 4 else "2001:db8:99::9", vip[0], about(Protocol.UDP, vip, client), 8, hops=1
        ),
        frame(Protocol.UDP, client, vip, hops=1, macs=(pk.ROUTER_MAC, "ff:ff:ff:ff:ff:ff")),
        frame(Protocol.UDP, client, vip, hops=1, macs=(pk.ROUTER_MAC, "33:33:00:00:00:01")),
    ):
        assert dp.run(ARRIVES[layer], raw).verdict == pk.DROP[layer]
    assert dp.counted() == {f"{HOOK[layer]}.ERROR_LIMITED": 6}


@layers
@families
def test_answers_to_hops_are_limited(dp: Datapath, layer: Layer, family: int) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.UDP, local=False))
    late = frame(Protocol.UDP, (CLIENT[family], 40000), (VIP[family], 80), hops=1)
    with dp.inside():
        for _ in range(3000):
            dp.run_here(ARRIVES[layer], late)
    counted = dp.counted()
    assert counted[f"{HOOK[layer]}.ERROR_LIMITED"] > 0
    assert counted[f"{HOOK[layer]}.TTL"] + counted[f"{HOOK[layer]}.ERROR_LIMITED"] == 3000


@layers
@families
@protocols
@pytest.mark.parametrize("df", [True, False], ids=["DF", "may-fragment"])
def test_too_big_for_the_next_device(dp: Datapath, layer: Layer, family: int, protocol: Protocol, df: bool) -> None:
    """The sender is told the MTU; so it is in IPv4 without DF, since nobody here fragments."""
    dp.serve(Service(frontend(VIP[family], 80, protocol), (backend(NARROW_POD[family], 8080, protocol, local=False),)))
    client, vip = (CLIENT[family], 40000), (VIP[family], 80)

    def build(size: int) -> bytes:
        overhead = len(frame(protocol, client, vip, payload=b"")) - 14
        raw = Ether(frame(protocol, client, vip, payload=bytes(size - overhead)))
        if family == 4 and df:
            raw.payload.flags = "DF"
            del raw.payload.chksum
        return bytes(raw)

    large, fitting = build(1284), build(1280)
    out = dp.run(ARRIVES[layer], large)
    assert out.verdict == ANSWERED[layer]
    same(out.packet, error(family, "too big", large, NODE[family]))
    assert dp.run(ARRIVES[layer], fitting).verdict == pk.SENT[layer]
    assert dp.counted() == {f"{HOOK[layer]}.TOO_BIG": 1, f"{HOOK[layer]}.REUSED": 1}
