"""Packets to ports at which nothing is served pass untouched, and nothing that is served is ever missed."""

from __future__ import annotations

import pytest

from bpfproxy.model.frontend import FrontendKind
from bpfproxy.model.service import Protocol
from tests.packet import packets as pk
from tests.packet.datapath import CLIENT, NODE, OTHER_VIP, POD, VIP, Datapath, Service, backend, frontend
from tests.packet.packets import frame, same

families = pytest.mark.parametrize("family", [4, 6])
protocols = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())


def service(address: str, port: int, family: int, protocol: Protocol, to: int = 8080) -> Service:
    target = backend(POD[family], to, protocol)
    return Service(frontend(address, port, protocol), (target,), FrontendKind.CLUSTER_IP, name=f"p{port}")


def arrives(dp: Datapath, protocol: Protocol, family: int, vip: tuple[str, int], client_port: int = 40000) -> bool:
    """Whether a client's first packet is translated; if not, it has to be untouched."""
    sent = frame(protocol, (CLIENT[family], client_port), vip)
    out = dp.run("xdp", sent)
    assert out.verdict == pk.XDP_PASS
    if out.packet == sent:
        return False
    same(out.packet, frame(protocol, (CLIENT[family], client_port), (POD[family], 8080)))
    return True


@families
@protocols
@pytest.mark.parametrize("port", [1, 63, 64, 80, 32767, 65535])
def test_the_port_alone_decides(dp: Datapath, family: int, protocol: Protocol, port: int) -> None:
    dp.serve(service(VIP[family], port, family, protocol))
    assert arrives(dp, protocol, family, (VIP[family], port))
    for other in (port - 1, port ^ 64, port ^ 1024):
        assert not arrives(dp, protocol, family, (VIP[family], other & 0xFFFF), 40001)
    for twin in Protocol:
        assert arrives(dp, twin, family, (VIP[family], port), 40002) == (twin is protocol)


@families
def test_two_services_at_a_port(dp: Datapath, family: int) -> None:
    one, two = (service(address, 80, family, Protocol.TCP) for address in (VIP[family], OTHER_VIP[family]))
    one.name, two.name = "one", "two"
    dp.serve(one, two)
    dp.serve(two)
    assert not arrives(dp, Protocol.TCP, family, (VIP[family], 80))
    assert arrives(dp, Protocol.TCP, family, (OTHER_VIP[family], 80))
    dp.serve()
    assert not arrives(dp, Protocol.TCP, family, (OTHER_VIP[family], 80), 40001)


@families
def test_a_flow_outlives_its_service(dp: Datapath, family: int) -> None:
    dp.serve(service(VIP[family], 80, family, Protocol.TCP))
    assert arrives(dp, Protocol.TCP, family, (VIP[family], 80))
    dp.serve()
    out = dp.run("xdp", frame(Protocol.TCP, (CLIENT[family], 40000), (VIP[family], 80), flags="A"))
    same(out.packet, frame(Protocol.TCP, (CLIENT[family], 40000), (POD[family], 8080), flags="A"))


@families
def test_a_restart_finds_the_ports_again(dp: Datapath, family: int) -> None:
    dp.serve(service(VIP[family], 80, family, Protocol.TCP))
    words = dp.maps["served_ports"].mmap().cast("Q")
    before = list(words)
    words[0] = words[1] = 0  # as if an agent had been killed before it wrote them
    words[1000] = 1  # or before it took one back
    dp._reset_proxier()
    assert list(words) == before
    assert arrives(dp, Protocol.TCP, family, (VIP[family], 80))


@families
def test_node_ports(dp: Datapath, family: int) -> None:
    wildcard = "0.0.0.0" if family == 4 else "::"
    dp.serve(service(wildcard, 30080, family, Protocol.UDP))
    assert arrives(dp, Protocol.UDP, family, (NODE[family], 30080))
    assert not arrives(dp, Protocol.UDP, family, (NODE[family], 30081), 40001)
