"""ICMP errors: translated with the packet that they quote, and sent where nobody answers."""

from __future__ import annotations

from typing import Any

import pytest

from bpfproxy.model.frontend import FrontendKind, OnEmpty
from bpfproxy.model.service import Protocol
from tests.packet import packets as pk
from tests.packet.datapath import CLIENT, NODE, POD, REMOTE_POD, VIP, Datapath, Layer, Service, frontend
from tests.packet.packets import Ether, Packet, Raw, frame, network, same, transport
from tests.packet.test_forward import ARRIVES, HOOK, families, hooks, service

ROUTER = {4: "203.0.113.9", 6: "2001:db8:99::9"}
quoted = pytest.mark.parametrize("size", [8, 60], ids=["cut", "whole"])
translated = pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP], ids=lambda protocol: protocol.name)


def too_big(
    sender: str, receiver: str, inner: Packet, size: int, *, hops: int = 64, macs: tuple[str, str] | None = None
) -> bytes:
    """ICMP "too big", MTU 1400, that quotes `size` bytes behind the IP header of `inner`."""
    header = 40 if ":" in sender else 20
    cut = Raw(bytes(inner)[: header + size])
    message: Any = pk.ICMPv6PacketTooBig(mtu=1400) if ":" in sender else pk.ICMP(type=3, code=4, nexthopmtu=1400)
    outer = network(sender, receiver, hops)
    source, destination = macs or (pk.ROUTER_MAC, pk.UP_MAC)
    return bytes(Ether(src=source, dst=destination) / outer / message / cut)


def packet(protocol: Protocol, source: tuple[str, int], destination: tuple[str, int], flags: str = "A") -> Packet:
    return network(source[0], destination[0]) / transport(protocol, source[1], destination[1], flags)


@hooks
@families
@translated
@quoted
def test_to_local_backend_and_back(
    dp: Datapath, layer: Layer, complete: bool, family: int, protocol: Protocol, size: int
) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=True))
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (POD[family], 8080)
    dp.run(ARRIVES[layer], frame(protocol, client, vip))

    # a router between node and client cannot pass the reply on
    out = dp.run(
        ARRIVES[layer], too_big(ROUTER[family], vip[0], packet(protocol, vip, client), size), complete=complete
    )
    assert out.verdict == pk.PASS[layer]
    same(out.packet, too_big(ROUTER[family], pod[0], packet(protocol, pod, client), size))

    # the node cannot pass the request on to the pod
    about = too_big(NODE[family], client[0], packet(protocol, client, pod), size)
    out = dp.run("tc_out", about, complete=complete)
    same(out.packet, too_big(NODE[family], client[0], packet(protocol, client, vip), size))

    # the pod itself refuses
    about = too_big(pod[0], client[0], packet(protocol, client, pod), size)
    out = dp.run("tc_out", about, complete=complete)
    same(out.packet, too_big(vip[0], client[0], packet(protocol, client, vip), size))
    assert dp.counted() == {f"{HOOK[layer]}.TRANSLATED": 1, f"{HOOK[layer]}.ICMP": 1, "TC_OUT.ICMP": 2}


@hooks
@families
@translated
@quoted
def test_to_remote_backend_and_back(
    dp: Datapath, layer: Layer, complete: bool, family: int, protocol: Protocol, size: int
) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=False))
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (REMOTE_POD[family], 8080)
    first = dp.run(ARRIVES[layer], frame(protocol, client, vip))
    node = (NODE[family], int.from_bytes(first.packet[(34 if family == 4 else 54) :][:2]))

    for sender, shown in ((ROUTER[family], ROUTER[family]), (pod[0], vip[0])):
        about = too_big(sender, node[0], packet(protocol, node, pod), size)
        out = dp.run(ARRIVES[layer], about, complete=complete)
        assert out.verdict == pk.SENT[layer]
        same(
            out.packet,
            too_big(shown, client[0], packet(protocol, client, vip), size, hops=63, macs=(pk.UP_MAC, pk.ROUTER_MAC)),
        )

    about = too_big(ROUTER[family], vip[0], packet(protocol, vip, client), size)
    out = dp.run(ARRIVES[layer], about, complete=complete)
    assert out.verdict == pk.SENT[layer]
    same(
        out.packet,
        too_big(node[0], pod[0], packet(protocol, pod, node), size, hops=63, macs=(pk.UP_MAC, pk.REMOTE_MAC)),
    )


def unreachable(family: int, request: bytes, sender: str, receiver: str) -> bytes:
    inner = request[14:][: (20 if family == 4 else 40) + 8]
    if family == 4:
        answer = pk.IP(src=sender, dst=receiver, ttl=64, id=0) / pk.ICMP(type=3, code=3) / Raw(inner)
    else:
        answer = pk.IPv6(src=sender, dst=receiver, hlim=64) / pk.ICMPv6DestUnreach(code=4) / Raw(inner)
    return bytes(Ether(src=pk.UP_MAC, dst=pk.ROUTER_MAC) / answer)


@pytest.mark.parametrize("layer", ["xdp", "tc"])
@families
@pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("length", [0, 1400])
def test_no_endpoint_is_answered(dp: Datapath, layer: Layer, family: int, protocol: Protocol, length: int) -> None:
    """Without the whole packet's sum: the kernel gives that up when the packet's size changes."""
    dp.serve(Service(frontend(VIP[family], 80, protocol), ()))
    request = frame(protocol, (CLIENT[family], 40000), (VIP[family], 80), payload=bytes(length))
    out = dp.run(ARRIVES[layer], request)
    assert out.verdict == {"xdp": pk.XDP_TX, "tc": pk.TC_REDIRECT}[layer]
    same(out.packet, unreachable(family, request, VIP[family], CLIENT[family]))
    assert dp.counted() == {f"{HOOK[layer]}.NO_BACKEND": 1}


@families
@pytest.mark.parametrize("layer", ["xdp", "tc"])
def test_answers_are_limited(dp: Datapath, layer: Layer, family: int) -> None:
    dp.serve(Service(frontend(VIP[family], 80, Protocol.UDP), ()))
    request = frame(Protocol.UDP, (CLIENT[family], 40000), (VIP[family], 80))
    dp.run(ARRIVES[layer], request)
    dp.maps["allowances"].zero(0)
    for _ in range(400):
        dp.run(ARRIVES[layer], request)
    counted = dp.counted()
    assert counted[f"{HOOK[layer]}.NO_BACKEND"] + counted.get(f"{HOOK[layer]}.ERROR_LIMITED", 0) == 401


@families
@pytest.mark.parametrize("layer", ["xdp", "tc"])
def test_never_to_many_nor_from_nowhere(dp: Datapath, layer: Layer, family: int) -> None:
    dp.serve(Service(frontend(VIP[family], 80, Protocol.UDP), ()))
    to_all = frame(Protocol.UDP, (CLIENT[family], 1), (VIP[family], 80), macs=(pk.ROUTER_MAC, "ff:ff:ff:ff:ff:ff"))
    nowhere = frame(Protocol.UDP, ("0.0.0.0" if family == 4 else "::", 1), (VIP[family], 80))
    for request in (to_all, nowhere):
        assert dp.run(ARRIVES[layer], request).verdict == pk.DROP[layer]
    assert dp.counted() == {f"{HOOK[layer]}.ERROR_LIMITED": 2}


@hooks
@families
def test_none_local_is_dropped(dp: Datapath, layer: Layer, complete: bool, family: int) -> None:
    dp.serve(Service(frontend(VIP[family], 80), (), on_empty=OnEmpty.DROP))
    out = dp.run(ARRIVES[layer], frame(Protocol.TCP, (CLIENT[family], 1), (VIP[family], 80)), complete=complete)
    assert out.verdict == pk.DROP[layer]
    assert dp.counted() == {f"{HOOK[layer]}.NO_LOCAL_BACKEND": 1}
