"""ICMP errors of every kind, about packets of every kind; echo; and what XDP has to leave to tc."""

from __future__ import annotations

from typing import Any

import pytest

from bpfproxy.model.frontend import FrontendKind
from bpfproxy.model.service import Protocol
from tests.packet import packets as pk
from tests.packet.checker import check_translated, dissect
from tests.packet.corpus import SILENT_POD
from tests.packet.datapath import (
    CLIENT,
    OTHER_VIP,
    POD,
    REMOTE_POD,
    VIP,
    Datapath,
    Layer,
    Service,
    backend,
    frontend,
    left_to_tc,
)
from tests.packet.packets import Ether, Packet, Raw, frame, network, same, transport
from tests.packet.test_flows import ends
from tests.packet.test_forward import ARRIVES, HOOK, families, hooks, protocols, service
from tests.packet.test_icmp import ROUTER, packet, too_big

KINDS = {
    4: {
        "net": (3, 0), "host": (3, 1), "port": (3, 3), "big": (3, 4), "filtered": (3, 13), "hops": (11, 0),
        "field": (12, 0),
    },
    6: {
        "net": (1, 0), "host": (1, 3), "port": (1, 4), "big": (2, 0), "filtered": (1, 1), "hops": (3, 0),
        "field": (4, 0),
    },
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", list(KINDS[4]))
quotes = pytest.mark.parametrize("size", [8, 12, 60], ids=["8-bytes", "12-bytes", "whole"])


def error(kind: str, sender: str, receiver: str, inner: Packet | bytes, size: int, **options: Any) -> bytes:
    """An ICMP error that quotes `size` bytes behind the IP header of `inner`."""
    family = 6 if ":" in sender else 4
    hops, macs = options.get("hops", 64), options.get("macs", (pk.ROUTER_MAC, pk.UP_MAC))
    quote = Raw(bytes(inner)[: (40 if family == 6 else 20) + size])
    message: Any
    number, code = KINDS[family][kind]
    if family == 4:
        message = pk.ICMP(type=number, code=code)
    else:
        kinds6 = {1: pk.ICMPv6DestUnreach, 2: pk.ICMPv6PacketTooBig, 3: pk.ICMPv6TimeExceeded, 4: pk.ICMPv6ParamProblem}
        message = kinds6[number](code=code)
    return bytes(Ether(src=macs[0], dst=macs[1]) / network(sender, receiver, hops) / message / quote)


@hooks
@families
@protocols
@kinds
@quotes
def test_to_the_backend_and_to_the_client(
    dp: Datapath, layer: Layer, complete: bool, family: int, protocol: Protocol, kind: str, size: int
) -> None:
    """From routers on either side of a node that forwards, and out of a node that has the pod."""
    dp.serve(
        service(FrontendKind.CLUSTER_IP, family, protocol, local=False),
        Service(frontend(OTHER_VIP[family], 80, protocol), (backend(POD[family], 8080, protocol),), name="local"),
    )
    client, vip, remote = (CLIENT[family], 40000), (VIP[family], 80), (REMOTE_POD[family], 8080)
    other, pod = (OTHER_VIP[family], 80), (POD[family], 8080)
    node, _ = ends(dp.run(ARRIVES[layer], frame(protocol, client, vip)).packet)
    dp.run(ARRIVES[layer], frame(protocol, client, other))
    # SCTP's CRC in a quote cannot follow: the message is cut off. Nobody looks at it.
    cut = min(size, 8) if protocol is Protocol.SCTP else size

    about = error(kind, ROUTER[family], node[0], packet(protocol, node, remote), cut)
    out = dp.run(ARRIVES[layer], about, complete=complete)
    assert out.verdict == pk.SENT[layer]
    options: Any = {"hops": 63, "macs": (pk.UP_MAC, pk.ROUTER_MAC)}
    same(out.packet, error(kind, ROUTER[family], client[0], packet(protocol, client, vip), cut, **options))

    about = error(kind, ROUTER[family], vip[0], packet(protocol, vip, client), cut)
    out = dp.run(ARRIVES[layer], about, complete=complete)
    assert out.verdict == pk.SENT[layer]
    options = {"hops": 63, "macs": (pk.UP_MAC, pk.REMOTE_MAC)}
    same(out.packet, error(kind, node[0], remote[0], packet(protocol, remote, node), cut, **options))

    about = error(kind, ROUTER[family], other[0], packet(protocol, other, client), cut)
    out = dp.run(ARRIVES[layer], about, complete=complete)
    assert out.verdict == pk.PASS[layer]
    same(out.packet, error(kind, ROUTER[family], pod[0], packet(protocol, pod, client), cut))

    about = error(kind, pod[0], client[0], packet(protocol, client, pod), cut)
    out = dp.run("tc_out", about, complete=complete)
    same(out.packet, error(kind, other[0], client[0], packet(protocol, client, other), cut))
    assert dp.counted()[f"{HOOK[layer]}.ICMP"] == 3


@hooks
@families
def test_about_a_flow_with_a_translated_port(dp: Datapath, layer: Layer, complete: bool, family: int) -> None:
    """Two VIPs of one backend, one client port: the second flow has another port at the backend."""
    pod = (POD[family], 8080)
    vips = [(VIP[family], 80), (OTHER_VIP[family], 80)]
    dp.serve(*(Service(frontend(*vip), (backend(*pod),), name=f"vip{at}") for at, vip in enumerate(vips)))
    client = (CLIENT[family], 40000)
    for vip in vips:
        moved, _ = ends(dp.run(ARRIVES[layer], frame(Protocol.TCP, client, vip)).packet)
    about = too_big(ROUTER[family], vips[1][0], packet(Protocol.TCP, vips[1], client), 60)
    out = dp.run(ARRIVES[layer], about, complete=complete)
    assert out.verdict == pk.PASS[layer]
    same(out.packet, too_big(ROUTER[family], pod[0], packet(Protocol.TCP, pod, moved), 60))
    about = too_big(pod[0], client[0], packet(Protocol.TCP, moved, pod), 60)
    out = dp.run("tc_out", about, complete=complete)
    same(out.packet, too_big(vips[1][0], client[0], packet(Protocol.TCP, client, vips[1]), 60))


@hooks
@families
@pytest.mark.parametrize("size", [8, 60], ids=["8-bytes", "whole"])
def test_quotes_with_options_or_of_fragments(
    dp: Datapath, layer: Layer, complete: bool, family: int, size: int
) -> None:
    """A reply that was fragmented, or carried an option, is known by its first fragment."""
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.UDP, local=True))
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (POD[family], 8080)
    dp.run(ARRIVES[layer], frame(Protocol.UDP, client, vip))

    def about(source: tuple[str, int]) -> bytes:
        datagram = transport(Protocol.UDP, source[1], client[1])
        inner: Any
        if family == 4:
            inner = (
                pk.IP(src=source[0], dst=client[0], id=7, flags="MF", options=[pk.IPOption_Router_Alert()]) / datagram
            )
        else:
            inner = pk.IPv6(src=source[0], dst=client[0]) / pk.IPv6ExtHdrFragment(id=9, m=1, nh=17) / datagram
        return error("big", ROUTER[family], source[0], bytes(inner), size + (4 if family == 4 else 8))

    out = dp.run(ARRIVES[layer], about(vip), complete=complete)
    assert out.verdict == pk.PASS[layer]
    same(out.packet, about(pod))


@hooks
@families
def test_quotes_that_tell_no_ports_are_left_alone(dp: Datapath, layer: Layer, complete: bool, family: int) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.UDP, local=True))
    client, vip = (CLIENT[family], 40000), (VIP[family], 80)
    dp.run(ARRIVES[layer], frame(Protocol.UDP, client, vip))
    later: Any
    if family == 4:
        later = pk.IP(src=vip[0], dst=client[0], id=7, frag=100, proto=17) / Raw(bytes(40))
    else:
        later = pk.IPv6(src=vip[0], dst=client[0]) / pk.IPv6ExtHdrFragment(id=9, offset=100, nh=17) / Raw(bytes(40))
    for raw in (
        error("big", ROUTER[family], vip[0], packet(Protocol.UDP, vip, client), 7),
        error("big", ROUTER[family], vip[0], later, 40),
        error("big", ROUTER[family], vip[0], packet(Protocol.UDP, (vip[0], 81), client), 8),
    ):
        out = dp.run(ARRIVES[layer], raw, complete=complete)
        assert out.verdict == pk.PASS[layer]
        same(out.packet, raw)
    assert dp.counted()[f"{HOOK[layer]}.NOT_OURS"] == 3


@hooks
@families
def test_echo_to_a_vip_is_the_stacks(dp: Datapath, layer: Layer, complete: bool, family: int) -> None:
    """A Service has ports; an echo has none. It is passed on, counted."""
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.TCP, local=True))
    request: Any = pk.ICMP(id=1, seq=1) if family == 4 else pk.ICMPv6EchoRequest(id=1, seq=1)
    macs = Ether(src=pk.ROUTER_MAC, dst=pk.UP_MAC)
    raw = bytes(macs / network(CLIENT[family], VIP[family]) / request / Raw(b"hello"))
    out = dp.run(ARRIVES[layer], raw, complete=complete)
    assert out.verdict == pk.PASS[layer]
    same(out.packet, raw)
    assert dp.counted() == {f"{HOOK[layer]}.NOT_OURS": 1}


@families
def test_xdp_leaves_errors_to_tc_as_they_came(dp: Datapath, family: int) -> None:
    """The way to the backend has no neighbour yet: tc finds the error untouched, and translates it."""
    silent = (SILENT_POD[family], 8080)
    dp.serve(Service(frontend(VIP[family], 80), (backend(*silent, local=False),)))
    client, vip = (CLIENT[family], 40000), (VIP[family], 80)
    assert left_to_tc(dp.run("xdp", frame(Protocol.TCP, client, vip)))
    assert dp.run("tc_in", frame(Protocol.TCP, client, vip)).verdict == pk.TC_REDIRECT
    about = too_big(ROUTER[family], vip[0], packet(Protocol.TCP, vip, client), 60)
    out = dp.run("xdp", about)
    assert left_to_tc(out)
    same(out.packet, about)
    out = dp.run("tc_in", about, complete=True)
    assert out.verdict == pk.TC_REDIRECT
    before = dissect(about, 14, family)
    assert before is not None
    after = check_translated(before, out.packet, sent=True)
    assert after.addresses[len(after.addresses) // 2 :] == backend(*silent).address
    assert dp.counted() == {"XDP.NO_NEIGHBOUR": 2, "TC_IN.TRANSLATED": 1, "TC_IN.ICMP": 1}
