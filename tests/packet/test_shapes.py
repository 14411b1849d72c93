"""Packets of other shapes: fragments, IPv4 options, IPv6 extension headers, VLAN tags; what is cut short."""

from __future__ import annotations

from typing import Any

import pytest

from bpfproxy.model.frontend import FrontendKind
from bpfproxy.model.service import Protocol
from tests.packet import packets as pk
from tests.packet.datapath import CLIENT, NODE, POD, REMOTE_POD, VIP, Datapath, Layer, left_to_tc
from tests.packet.packets import Ether, Packet, Raw, frame, same, transport
from tests.packet.test_forward import ARRIVES, HOOK, families, hooks, service

layers = pytest.mark.parametrize("layer", ["xdp", "tc"])
translated = pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP], ids=lambda protocol: protocol.name)
Address = tuple[str, int]


def ether(payload: Packet, macs: tuple[str, str] = (pk.ROUTER_MAC, pk.UP_MAC)) -> bytes:
    return bytes(Ether(src=macs[0], dst=macs[1]) / payload)


def fragments(family: int, protocol: Protocol, source: Address, destination: Address, **options: Any) -> list[bytes]:
    """A datagram in three fragments."""
    hops = options.pop("hops", 64)
    macs = options.pop("macs", (pk.ROUTER_MAC, pk.UP_MAC))
    whole = pk.network(source[0], destination[0]) / transport(
        protocol, source[1], destination[1], payload=bytes(range(100))
    )
    header = 20 if family == 4 else 40
    data = bytes(whole)[header:]
    result = []
    for start in range(0, len(data), 48):
        part = Raw(data[start : start + 48])
        more = start + 48 < len(data)
        if family == 4:
            ip = pk.IP(
                src=source[0], dst=destination[0], ttl=hops, id=77, proto=int(protocol), flags="MF" if more else 0,
                frag=start // 8,
            )  # fmt: skip
            result.append(ether(ip / part, macs))
        else:
            ip = pk.IPv6(src=source[0], dst=destination[0], hlim=hops)
            fragment = pk.IPv6ExtHdrFragment(nh=int(protocol), id=77, m=int(more), offset=start // 8)
            result.append(ether(ip / fragment / part, macs))
    return result


@hooks
@families
@translated
def test_fragments_follow_the_first(
    dp: Datapath, layer: Layer, complete: bool, family: int, protocol: Protocol
) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=True))
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (POD[family], 8080)
    sent = zip(fragments(family, protocol, client, vip), fragments(family, protocol, client, pod), strict=True)
    for raw, expected in sent:
        out = dp.run(ARRIVES[layer], raw, complete=complete)
        assert out.verdict == pk.PASS[layer]
        same(out.packet, expected)
    replies = zip(fragments(family, protocol, pod, client), fragments(family, protocol, vip, client), strict=True)
    for raw, expected in replies:
        same(dp.run("tc_out", raw, complete=complete).packet, expected)


@hooks
@families
@translated
def test_forwarded_fragments(dp: Datapath, layer: Layer, complete: bool, family: int, protocol: Protocol) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=False))
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (REMOTE_POD[family], 8080)
    node: Address | None = None
    for index, raw in enumerate(fragments(family, protocol, client, vip)):
        out = dp.run(ARRIVES[layer], raw, complete=complete)
        assert out.verdict == pk.SENT[layer]
        if node is None:
            at = 34 if family == 4 else 62
            node = (NODE[family], int.from_bytes(out.packet[at : at + 2]))
        expected = fragments(family, protocol, node, pod, hops=63, macs=(pk.UP_MAC, pk.REMOTE_MAC))[index]
        same(out.packet, expected)


@hooks
@families
def test_a_fragment_without_its_first_is_left_alone(dp: Datapath, layer: Layer, complete: bool, family: int) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.UDP, local=True))
    raw = fragments(family, Protocol.UDP, (CLIENT[family], 1), (VIP[family], 80))[1]
    out = dp.run(ARRIVES[layer], raw, complete=complete)
    assert out.verdict == pk.PASS[layer]
    same(out.packet, raw)
    assert dp.counted() == {f"{HOOK[layer]}.FRAGMENT": 1}


@hooks
@translated
def test_options(dp: Datapath, layer: Layer, complete: bool, protocol: Protocol) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, 4, protocol, local=True))

    def build(destination: Address) -> bytes:
        ip = pk.IP(src=CLIENT[4], dst=destination[0], options=[pk.IPOption_Router_Alert()])
        return ether(ip / transport(protocol, 40000, destination[1]))

    out = dp.run(ARRIVES[layer], build((VIP[4], 80)), complete=complete)
    assert out.verdict == pk.PASS[layer]
    same(out.packet, build((POD[4], 8080)))


@hooks
@translated
def test_extension_headers(dp: Datapath, layer: Layer, complete: bool, protocol: Protocol) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, 6, protocol, local=True))

    def build(destination: Address) -> bytes:
        ip = pk.IPv6(src=CLIENT[6], dst=destination[0]) / pk.IPv6ExtHdrHopByHop() / pk.IPv6ExtHdrDestOpt()
        return ether(ip / transport(protocol, 40000, destination[1]))

    out = dp.run(ARRIVES[layer], build((VIP[6], 80)), complete=complete)
    assert out.verdict == pk.PASS[layer]
    same(out.packet, build((POD[6], 8080)))


def tagged(tags: tuple[int, ...], family: int, protocol: Protocol, destination: Address) -> bytes:
    frame: Packet = Ether(src=pk.ROUTER_MAC, dst=pk.UP_MAC)
    for tag in tags:
        frame = frame / pk.Dot1Q(vlan=tag, prio=3)
    return bytes(frame / pk.network(CLIENT[family], destination[0]) / transport(protocol, 40000, destination[1]))


@families
@translated
@pytest.mark.parametrize("local", [True, False], ids=["local", "remote"])
@pytest.mark.parametrize("tags", [(10,), (10, 11), (0, 11)], ids=["802.1Q", "QinQ", "priority-802.1Q"])
def test_packets_of_a_vlan_are_its_devices(
    dp: Datapath, family: int, protocol: Protocol, local: bool, tags: tuple[int, ...]
) -> None:
    """There they are seen again, by tc and without their tag."""
    dp.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=local))
    raw = tagged(tags, family, protocol, (VIP[family], 80))
    for layer, out in (("xdp", dp.run("xdp", raw)), ("tc", dp.run("tc_in", raw))):
        assert out.verdict == pk.PASS[layer]
        same(out.packet, raw)
    assert dp.counted() == {"XDP.TAGGED": 1, "TC_IN.TAGGED": 1}


@families
@translated
def test_a_priority_tag_is_no_vlan(dp: Datapath, family: int, protocol: Protocol) -> None:
    """XDP leaves it in its place; what is to be forwarded without it is tc's."""
    dp.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=True))
    out = dp.run("xdp", tagged((0,), family, protocol, (VIP[family], 80)))
    assert out.verdict == pk.XDP_PASS
    same(out.packet, tagged((0,), family, protocol, (POD[family], 8080)))
    dp.clear()
    dp.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=False))
    raw = tagged((0,), family, protocol, (VIP[family], 80))
    out = dp.run("xdp", raw)
    assert left_to_tc(out)
    same(out.packet, raw)
    assert dp.counted() == {"XDP.NO_NEIGHBOUR": 1}


@pytest.mark.parametrize("program", ["xdp", "tc_in", "tc_out"])
@pytest.mark.parametrize("ethertype", [0x0806, 0x88CC, 0x9000], ids=["ARP", "LLDP", "loop"])
def test_other_ethertypes_are_counted(dp: Datapath, program: str, ethertype: int) -> None:
    raw = bytes(Ether(src=pk.ROUTER_MAC, dst=pk.UP_MAC, type=ethertype) / Raw(bytes(46)))
    out = dp.run(program, raw)
    assert out.verdict == (pk.XDP_PASS if program == "xdp" else pk.TC_NEXT)
    same(out.packet, raw)
    assert dp.counted() == {f"{program.upper()}.OTHER_PROTOCOL": 1}


@hooks
@families
@pytest.mark.parametrize("payload", [b"", b"12345"], ids=["padded-20", "padded-15"])
def test_sctp_in_a_padded_frame(dp: Datapath, layer: Layer, complete: bool, family: int, payload: bytes) -> None:
    """The shortest frame has 60 bytes; what fills it up is no part of the checksum."""
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.SCTP, local=True))

    def build(destination: Address) -> bytes:
        message = pk.SCTP(sport=40000, dport=destination[1], tag=1) / Raw(payload)
        return ether(pk.network(CLIENT[family], destination[0]) / message).ljust(96, b"\0")

    same(dp.run(ARRIVES[layer], build((VIP[family], 80)), complete=complete).packet, build((POD[family], 8080)))


@layers
@families
def test_udp_without_checksum(dp: Datapath, layer: Layer, family: int) -> None:
    """IPv4 allows it: there is none afterwards, either."""
    if family == 6:
        return
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.UDP, local=True))

    def build(destination: Address) -> bytes:
        datagram = pk.UDP(sport=40000, dport=destination[1], chksum=0) / Raw(b"x")
        return ether(pk.network(CLIENT[family], destination[0]) / datagram)

    same(dp.run(ARRIVES[layer], build((VIP[family], 80))).packet, build((POD[family], 8080)))


@layers
@families
@translated
def test_what_is_cut_short_is_left_alone(dp: Datapath, layer: Layer, family: int, protocol: Protocol) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=True))
    whole = frame(protocol, (CLIENT[family], 40000), (VIP[family], 80), payload=b"")
    header = 14 + (20 if family == 4 else 40)
    for size in range(header, len(whole)):
        out = dp.run(ARRIVES[layer], whole[:size])
        assert out.verdict == pk.PASS[layer]
        same(out.packet, whole[:size])
