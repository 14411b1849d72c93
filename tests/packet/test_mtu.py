"""What does not fit the hop's MTU is answered before it is translated, also if a device would cut it into segments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bpfproxy.model.frontend import FrontendKind
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.ebpf import packet
from tests.packet import packets as pk
from tests.packet.datapath import CLIENT, NODE, POD, VIP, Datapath, datapath
from tests.packet.packets import same
from tests.packet.test_forward import families, service

MTU = 1500
IP = {4: 20, 6: 40}
TIMESTAMPS: list[Any] = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
SEGMENTS = {
    "tcp": (Protocol.TCP, pk.TCP(sport=40000, dport=80, flags="S"), 20),
    "tcp-with-options": (Protocol.TCP, pk.TCP(sport=40000, dport=80, flags="S", options=TIMESTAMPS), 32),
    "udp": (Protocol.UDP, pk.UDP(sport=40000, dport=80), 8),
}


def whole(source: str, destination: str, transport: Any, size: int) -> bytes:
    """A frame that may not be cut into fragments, with so many bytes of data."""
    made = pk.network(source, destination)
    if "." in source:
        made.flags = "DF"
    return bytes(pk.Ether(src=pk.ROUTER_MAC, dst=pk.UP_MAC) / made / transport / pk.Raw(bytes(size)))


def answer(family: int, about: bytes) -> bytes:
    """The error to the client that a packet did not fit: 8 bytes of its transport header are quoted."""
    quote = about[14 : 14 + IP[family] + 8]
    error = (
        pk.ICMP(type=3, code=4, nexthopmtu=MTU) / pk.Raw(quote)
        if family == 4
        else pk.ICMPv6PacketTooBig(mtu=MTU) / pk.Raw(quote)
    )
    outer = pk.network(NODE[family], CLIENT[family])
    if family == 4:
        outer.id = 0
    return bytes(pk.Ether(src=pk.UP_MAC, dst=pk.ROUTER_MAC) / outer / error)


@families
@pytest.mark.parametrize("kind", SEGMENTS)
def test_segments_that_a_device_is_to_cut(dp: Datapath, family: int, kind: str) -> None:
    protocol, transport, header = SEGMENTS[kind]
    dp.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=False))
    frame = whole(CLIENT[family], VIP[family], transport, 2900)
    fits = MTU - IP[family] - header
    out = dp.run("tc_in", frame, segment=fits)
    assert out.verdict == pk.TC_REDIRECT
    assert len(out.packet) == len(frame)
    out = dp.run("tc_in", frame, segment=fits + 1)
    assert out.verdict == pk.TC_REDIRECT
    same(out.packet, answer(family, frame))


@pytest.fixture(scope="module", params=["prebuilt", "bcc"])
def routing(request: pytest.FixtureRequest) -> Iterator[Datapath]:
    with datapath(request.param, host_routing=1) as found:
        yield found


@families
def test_straight_to_a_pod(routing: Datapath, family: int) -> None:
    """Fragments are the stack's business."""
    dp = routing
    dp.clear()
    dp.maps["devices"].update(dp.ifindex("pod0").to_bytes(4, "little"), packet.encode_device(pod=True))
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.UDP, local=True))
    client, vip, pod = ((address[family], port) for address, port in ((CLIENT, 40000), (VIP, 80), (POD, 8080)))
    fits = MTU - IP[family] - 8
    transport = pk.UDP(sport=40000, dport=80)
    assert dp.run("tc_in", whole(CLIENT[family], VIP[family], transport, fits)).verdict == pk.TC_REDIRECT
    frame = whole(CLIENT[family], VIP[family], transport, fits + 1)
    out = dp.run("tc_in", frame)
    assert out.verdict == pk.TC_REDIRECT
    same(out.packet, answer(family, frame))
    if family == 4:
        payload = bytes(fits + 1)
        out = dp.run("tc_in", pk.frame(Protocol.UDP, client, vip, payload=payload))
        assert out.verdict == pk.TC_NEXT
        same(out.packet, pk.frame(Protocol.UDP, client, pod, payload=payload))
