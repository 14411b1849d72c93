"""TCP, UDP and SCTP through each kind of frontend: complete packets, in both directions."""

from __future__ import annotations

from typing import Any

import pytest

from bpfproxy.model.frontend import FrontendKind, Masquerade
from bpfproxy.model.service import Protocol
from tests.packet import packets as pk
from tests.packet.datapath import (
    CLIENT,
    NODE,
    OTHER_VIP,
    POD,
    REMOTE_POD,
    SNAT,
    VIP,
    Datapath,
    Layer,
    Service,
    backend,
    frontend,
)
from tests.packet.packets import frame, same

PROTOCOLS = [Protocol.TCP, Protocol.UDP, Protocol.SCTP]
HOOKS: list[tuple[Layer, bool]] = [("xdp", False), ("tc", False), ("tc", True)]

hooks = pytest.mark.parametrize(("layer", "complete"), HOOKS, ids=["xdp", "tc", "tc-complete"])
families = pytest.mark.parametrize("family", [4, 6])
protocols = pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)

ARRIVES = {"xdp": "xdp", "tc": "tc_in"}
HOOK = {"xdp": "XDP", "tc": "TC_IN"}


def service(kind: FrontendKind, family: int, protocol: Protocol, *, local: bool, **options: Any) -> Service:
    addresses = {
        FrontendKind.CLUSTER_IP: VIP[family],
        FrontendKind.NODE_PORT: "0.0.0.0" if family == 4 else "::",
        FrontendKind.EXTERNAL_IP: OTHER_VIP[family],
        FrontendKind.LOAD_BALANCER: OTHER_VIP[family],
    }
    masquerade = Masquerade.NOT_LOCAL if kind is FrontendKind.CLUSTER_IP else Masquerade.ALWAYS
    options = {"masquerade": masquerade} | options
    return Service(
        frontend(addresses[kind], 30080 if kind is FrontendKind.NODE_PORT else 80, protocol),
        (backend((POD if local else REMOTE_POD)[family], 8080, protocol, local=local),),
        kind,
        **options,
    )


def vip_of(served: Service, family: int) -> tuple[str, int]:
    if served.kind is FrontendKind.NODE_PORT:
        return NODE[family], served.frontend.port
    return (VIP if served.kind is FrontendKind.CLUSTER_IP else OTHER_VIP)[family], served.frontend.port


@hooks
@families
@protocols
@pytest.mark.parametrize("kind", list(FrontendKind), ids=lambda kind: kind.name)
def test_local_backend(
    dp: Datapath, layer: Layer, complete: bool, family: int, protocol: Protocol, kind: FrontendKind
) -> None:
    """The destination is translated, the client stays; replies are translated as they leave."""
    served = service(kind, family, protocol, local=True)
    dp.serve(served)
    client, vip, pod = (CLIENT[family], 40000), vip_of(served, family), (POD[family], 8080)

    out = dp.run(ARRIVES[layer], frame(protocol, client, vip), complete=complete)
    assert out.verdict == pk.PASS[layer]
    same(out.packet, frame(protocol, client, pod))

    out = dp.run(ARRIVES[layer], frame(protocol, client, vip, flags="A"), complete=complete)
    assert out.verdict == pk.PASS[layer]
    same(out.packet, frame(protocol, client, pod, flags="A"))

    out = dp.run("tc_out", frame(protocol, pod, client, flags="SA"), complete=complete)
    assert out.verdict == pk.TC_NEXT
    same(out.packet, frame(protocol, vip, client, flags="SA"))

    hook = HOOK[layer]
    assert dp.counted() == {f"{hook}.TRANSLATED": 1, f"{hook}.REUSED": 1, "TC_OUT.REPLY": 1}


@hooks
@families
@protocols
@pytest.mark.parametrize("kind", list(FrontendKind), ids=lambda kind: kind.name)
def test_remote_backend(
    dp: Datapath, layer: Layer, complete: bool, family: int, protocol: Protocol, kind: FrontendKind
) -> None:
    """Both addresses are translated, and the packet is forwarded, both ways."""
    served = service(kind, family, protocol, local=False)
    dp.serve(served)
    client, vip, pod = (CLIENT[family], 40000), vip_of(served, family), (REMOTE_POD[family], 8080)

    def forwarded(flags: str) -> bytes:
        return frame(protocol, node, pod, flags=flags, hops=63, macs=(pk.UP_MAC, pk.REMOTE_MAC))

    out = dp.run(ARRIVES[layer], frame(protocol, client, vip), complete=complete)
    assert out.verdict == pk.SENT[layer], dp.counted()
    port = int.from_bytes(out.packet[(34 if family == 4 else 54) :][:2])
    assert SNAT[0] <= port <= SNAT[1]
    node = (NODE[family], port)
    same(out.packet, forwarded("S"))

    for _ in range(2):  # the second through the flow's own next hop
        out = dp.run(ARRIVES[layer], frame(protocol, client, vip, flags="A"), complete=complete)
        assert out.verdict == pk.SENT[layer]
        same(out.packet, forwarded("A"))

    for _ in range(2):
        out = dp.run(ARRIVES[layer], frame(protocol, pod, node, flags="SA"), complete=complete)
        assert out.verdict == pk.SENT[layer]
        same(out.packet, frame(protocol, vip, client, flags="SA", hops=63, macs=(pk.UP_MAC, pk.ROUTER_MAC)))

    hook = HOOK[layer]
    assert dp.counted() == {f"{hook}.TRANSLATED": 1, f"{hook}.REUSED": 2, f"{hook}.REPLY": 2}


@hooks
@families
def test_what_is_not_ours_is_untouched(dp: Datapath, layer: Layer, complete: bool, family: int) -> None:
    raw = frame(Protocol.TCP, (CLIENT[family], 1), (NODE[family], 22))
    out = dp.run(ARRIVES[layer], raw, complete=complete)
    assert out.verdict == pk.PASS[layer]
    same(out.packet, raw)
    out = dp.run("tc_out", raw, complete=complete)
    assert out.verdict == pk.TC_NEXT
    same(out.packet, raw)
    assert dp.counted() == {f"{HOOK[layer]}.NOT_OURS": 1, "TC_OUT.NOT_OURS": 1}
