"""Where a new flow cannot go on, and late segments of one that is over."""

from __future__ import annotations

import pytest

from bpfproxy.model.frontend import FrontendKind
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.ebpf import packet
from tests.packet import packets as pk
from tests.packet.corpus import LOST_POD
from tests.packet.datapath import CLIENT, POD, REMOTE_POD, VIP, Datapath, Layer, Service, backend, frontend
from tests.packet.packets import frame, same
from tests.packet.test_flows import ends
from tests.packet.test_forward import ARRIVES, HOOK, families, protocols, service

layers = pytest.mark.parametrize("layer", ["xdp", "tc"])


@layers
@families
@protocols
def test_no_route_to_the_backend(dp: Datapath, layer: Layer, family: int, protocol: Protocol) -> None:
    to = backend(LOST_POD[family], 8080, protocol, local=False)
    dp.serve(Service(frontend(VIP[family], 80, protocol), (to,)))
    out = dp.run(ARRIVES[layer], frame(protocol, (CLIENT[family], 40000), (VIP[family], 80)))
    assert out.verdict == pk.DROP[layer]
    assert dp.counted() == {f"{HOOK[layer]}.NO_ROUTE": 1}
    assert dp.flows(f"flows{family}") == {}


@layers
@families
@protocols
def test_no_address_to_translate_to(dp: Datapath, layer: Layer, family: int, protocol: Protocol) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=False))
    dp.maps["node"].update((0).to_bytes(4, "little"), packet.encode_node(1))
    out = dp.run(ARRIVES[layer], frame(protocol, (CLIENT[family], 40000), (VIP[family], 80)))
    assert out.verdict == pk.DROP[layer]
    assert dp.counted() == {f"{HOOK[layer]}.NO_SOURCE": 1}
    assert dp.flows(f"tuples{family}") == {}


@layers
@families
@pytest.mark.parametrize("last", ["FA", "R"], ids=["FIN", "RST"])
@pytest.mark.parametrize("whose", ["client", "backend"])
def test_late_segments_of_a_forwarded_connection(
    dp: Datapath, layer: Layer, family: int, last: str, whose: str
) -> None:
    """Both ways they go as before; a new connection of the same port gets a port of its own."""
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.TCP, local=False))
    client, vip, remote = (CLIENT[family], 40000), (VIP[family], 80), (REMOTE_POD[family], 8080)

    def asks(flags: str) -> tuple[str, int]:
        source, to = ends(dp.run(ARRIVES[layer], frame(Protocol.TCP, client, vip, flags=flags)).packet)
        assert to == remote
        return source

    def answers(flags: str) -> None:
        out = dp.run(ARRIVES[layer], frame(Protocol.TCP, remote, node, flags=flags))
        macs = (pk.UP_MAC, pk.ROUTER_MAC)
        same(out.packet, frame(Protocol.TCP, vip, client, flags=flags, hops=63, macs=macs))

    node = asks("S")
    answers("SA")
    assert asks("A") == node
    if whose == "client":
        assert asks(last) == node
    else:
        answers(last)
    assert [asks("A"), asks("PA")] == [node, node]
    answers("PA")
    assert asks("S") != node
    assert dp.counted()[f"{HOOK[layer]}.TRANSLATED"] == 2


@layers
@families
def test_late_segments_of_a_pod_of_this_node(dp: Datapath, layer: Layer, family: int) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.TCP, local=True))
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (POD[family], 8080)
    for flags in ("S", "A", "R", "A"):
        assert ends(dp.run(ARRIVES[layer], frame(Protocol.TCP, client, vip, flags=flags)).packet)[1] == pod
    same(dp.run("tc_out", frame(Protocol.TCP, pod, client)).packet, frame(Protocol.TCP, vip, client))
