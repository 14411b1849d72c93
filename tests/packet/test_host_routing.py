"""Opt-in: straight to the pods of this node, and back from their devices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bpfproxy.model.frontend import FrontendKind
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.ebpf import packet
from tests.packet import packets as pk
from tests.packet.datapath import CLIENT, OTHER_POD, POD, REMOTE_POD, VIP, Datapath, datapath, left_to_tc
from tests.packet.packets import frame, same
from tests.packet.test_forward import families, protocols, service


@pytest.fixture(scope="module", params=["prebuilt", "bcc"])
def routing(request: pytest.FixtureRequest) -> Iterator[Datapath]:
    with datapath(request.param, host_routing=1) as found:
        yield found


@families
@protocols
@pytest.mark.parametrize("known", [True, False], ids=["pod-device", "other-device"])
def test_both_ways(routing: Datapath, family: int, protocol: Protocol, known: bool) -> None:
    """Only to devices that are known to lead to a pod; replies are routed as they come from the pod."""
    dp = routing
    dp.clear()
    if known:
        dp.maps["devices"].update(dp.ifindex("pod0").to_bytes(4, "little"), packet.encode_device(pod=True))
    dp.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=True))
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (POD[family], 8080)
    for flags in ("S", "A", "A"):
        out = dp.run("tc_in", frame(protocol, client, vip, flags=flags), complete=True)
        if known:
            assert out.verdict == pk.TC_REDIRECT
            to_pod = frame(protocol, client, pod, flags=flags, hops=63, macs=(pk.POD_GATEWAY_MAC, pk.POD_MAC))
            same(out.packet, to_pod)
        else:
            assert out.verdict == pk.TC_NEXT
            same(out.packet, frame(protocol, client, pod, flags=flags))
    for _ in range(2):
        out = dp.run("tc_in", frame(protocol, pod, client, flags="SA"), complete=True)
        assert out.verdict == pk.TC_REDIRECT
        same(out.packet, frame(protocol, vip, client, flags="SA", hops=63, macs=(pk.UP_MAC, pk.ROUTER_MAC)))


@families
@protocols
def test_through_the_stack_both_ways(routing: Datapath, family: int, protocol: Protocol) -> None:
    """From a pod to a backend elsewhere, with its own address: conntrack sees both directions or none."""
    routing.clear()
    routing.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=False))
    client, vip, remote = (OTHER_POD[family], 40000), (VIP[family], 80), (REMOTE_POD[family], 8080)
    for flags in ("S", "A"):
        out = routing.run("tc_in", frame(protocol, client, vip, flags=flags))
        assert out.verdict == pk.TC_NEXT
        same(out.packet, frame(protocol, client, remote, flags=flags))
        raw = frame(protocol, remote, client, flags=flags + "A" * (flags == "S"))
        for layer in ("xdp", "tc_in"):
            out = routing.run(layer, raw)
            assert out.verdict == (pk.PASS["xdp"] if layer == "xdp" else pk.TC_NEXT)
            same(out.packet, raw)
        out = routing.run("tc_out", raw)
        same(out.packet, frame(protocol, vip, client, flags=flags + "A" * (flags == "S")))


@families
def test_what_pods_send_of_their_own_is_left_alone(routing: Datapath, family: int) -> None:
    routing.clear()
    routing.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.TCP, local=True))
    raw = frame(Protocol.TCP, (POD[family], 5000), (CLIENT[family], 443))
    out = routing.run("tc_in", raw)
    assert out.verdict == pk.TC_NEXT
    same(out.packet, raw)


@families
@protocols
def test_xdp_leaves_the_way_to_pods_to_tc(routing: Datapath, family: int, protocol: Protocol) -> None:
    """The first packet and later ones, untouched and marked for the program of tc, which goes past the stack."""
    routing.clear()
    routing.maps["devices"].update(routing.ifindex("pod0").to_bytes(4, "little"), packet.encode_device(pod=True))
    routing.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=True))
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (POD[family], 8080)
    for flags in ("S", "A"):
        raw = frame(protocol, client, vip, flags=flags)
        out = routing.run("xdp", raw)
        assert left_to_tc(out)
        assert out.packet == raw
        out = routing.run("tc_in", raw)
        assert out.verdict == pk.TC_REDIRECT
        same(out.packet, frame(protocol, client, pod, flags=flags, hops=63, macs=(pk.POD_GATEWAY_MAC, pk.POD_MAC)))
