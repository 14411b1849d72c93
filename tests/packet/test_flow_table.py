"""What the control plane reads of the programs' flows, and what the programs do when it removes some."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from bpfproxy.model.flow import Flow, FlowFilter, Place, State
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.ebpf import collector, flowcodec, snapshot
from bpfproxy.proxiers.ebpf.collector import Collector
from bpfproxy.proxiers.ebpf.conntrack import Conntrack
from bpfproxy.proxiers.ebpf.flowcodec import Names
from bpfproxy.proxiers.ebpf.packet import Timeouts
from bpfproxy.proxiers.ebpf.view import View
from tests.packet.datapath import (
    CLIENT,
    NODE,
    OTHER_POD,
    OTHER_VIP,
    POD,
    REMOTE_POD,
    VIP,
    Datapath,
    Service,
    backend,
    frontend,
)
from tests.packet.packets import frame

TCP, UDP = Protocol.TCP, Protocol.UDP
End = tuple[str, int]
families = pytest.mark.parametrize("family", [4, 6])
places = pytest.mark.parametrize("local", [True, False], ids=["local", "remote"])


@dataclass
class Later:
    """The programs' clock, some seconds ahead."""

    seconds: float = 0.0

    def __call__(self) -> int:
        return (flowcodec.now() + round(self.seconds / flowcodec.TICK)) & 0xFFFFFFFF


@dataclass
class Talk:
    """A client and the node; TCP or UDP, through XDP as packets arrive and tc as they leave."""

    dp: Datapath
    family: int
    protocol: Protocol = TCP
    clock: Later = field(default_factory=Later)

    def conntrack(self) -> Conntrack:
        return Conntrack(self.dp.maps, Timeouts(), self.clock)

    def flows(self) -> list[Flow]:
        return sorted(self.conntrack().read(self.names()), key=lambda flow: flow.vip)

    def names(self) -> Names:
        return Names(snapshot.take(self.dp.maps).frontends)

    def sweep(self) -> int:
        found, expired = Collector(self.conntrack()), 0
        while True:
            done = found.run()
            expired += done.expired_flows
            if done.delay != collector.PAUSE:
                return expired

    def asks(self, vip: End, flags: str = "S", layer: str = "xdp") -> bytes:
        program = "xdp" if layer == "xdp" else "tc_in"
        return self.dp.run(program, frame(self.protocol, (CLIENT[self.family], 40000), vip, flags=flags)).packet

    def answers(self, flags: str) -> None:
        """The backend of the only flow."""
        [flow] = self.flows()
        pod = REMOTE_POD if flow.source_translated else POD
        source = NODE[self.family] if flow.source_translated else CLIENT[self.family]
        packet = frame(self.protocol, (pod[self.family], 8080), (source, flow.source_port), flags=flags)
        self.dp.run("xdp" if flow.source_translated else "tc_out", packet)

    def rows(self) -> int:
        return sum(len(list(self.dp.maps[f"{name}{self.family}"].items())) for name in ("flows", "tuples"))


def served(
    family: int, pod: dict[int, str], vip: dict[int, str] = VIP, protocol: Protocol = TCP, name: str = "web"
) -> Service:
    to = backend(pod[family], 8080, protocol, local=pod is not REMOTE_POD)
    return Service(frontend(vip[family], 80, protocol), (to,), name=name)


@families
@places
@pytest.mark.parametrize("layer", ["xdp", "tc"])
def test_the_life_of_a_connection(dp: Datapath, family: int, local: bool, layer: str) -> None:
    dp.serve(served(family, POD if local else REMOTE_POD))
    talk, vip = Talk(dp, family), (VIP[family], 80)
    states: list[State] = []
    for whose, flags in (
        ("client", "S"),
        ("pod", "SA"),
        ("client", "A"),
        ("pod", "A"),
        ("client", "FA"),
        ("pod", "FA"),
    ):
        if whose == "client":
            talk.asks(vip, flags, layer)
        else:
            talk.answers(flags)
        [flow] = talk.flows()
        states.append(flow.state)
        assert flow.service == "default/web"
        assert (flow.source_translated, flow.local, flow.direct, flow.orphan) == (not local, local, False, False)
    assert states == [
        State.SYN_SENT,
        State.SYN_RECV,
        State.ESTABLISHED,
        State.ESTABLISHED,
        State.FIN_WAIT,
        State.TIME_WAIT,
    ]
    [flow] = talk.flows()
    assert flow.expires == pytest.approx(120, abs=2)
    assert flow.age < 60
    talk.clock.seconds = 110
    assert talk.sweep() == 0
    talk.clock.seconds = 130
    assert talk.sweep() == (1 if local else 2)
    assert talk.rows() == 0


@families
def test_traffic_is_counted(dp: Datapath, family: int) -> None:
    dp.serve(served(family, POD))
    talk = Talk(dp, family)
    first = talk.asks((VIP[family], 80))
    talk.asks((VIP[family], 80), "A")
    talk.answers("SA")
    length = len(first) - 14
    [found] = View(dp.maps).frontends()
    assert found.connections["packet"] == 1
    assert found.packets == {"forward": 2, "reply": 1}
    assert found.bytes == {"forward": 2 * length, "reply": length}
    [pod] = View(dp.maps).backends()
    assert (pod.connections, pod.packets, pod.bytes) == (1, found.packets, found.bytes)


@families
@places
def test_the_next_datagram_goes_to_a_live_endpoint(dp: Datapath, family: int, local: bool) -> None:
    """Rule 16."""
    dp.serve(served(family, POD if local else REMOTE_POD, protocol=UDP))
    talk = Talk(dp, family, UDP)
    talk.asks((VIP[family], 80))
    assert talk.rows() == (1 if local else 2)
    dp.serve(served(family, OTHER_POD, protocol=UDP))
    assert talk.rows() == 0
    talk.asks((VIP[family], 80))
    [flow] = talk.flows()
    assert flow.backend == backend(OTHER_POD[family], 8080, UDP).address


@families
def test_connections_of_an_endpoint_that_went_run_out(dp: Datapath, family: int) -> None:
    dp.serve(served(family, POD))
    talk = Talk(dp, family)
    talk.asks((VIP[family], 80))
    dp.serve(served(family, OTHER_POD))
    talk.asks((VIP[family], 80), "A")
    assert dp.counted() == {"XDP.TRANSLATED": 1, "XDP.REUSED": 1}
    [flow] = talk.flows()
    assert flow.backend == backend(POD[family], 8080).address


@families
@places
def test_a_flow_that_was_flushed_begins_anew(dp: Datapath, family: int, local: bool) -> None:
    dp.serve(served(family, POD if local else REMOTE_POD))
    talk = Talk(dp, family)
    talk.asks((VIP[family], 80))
    assert talk.conntrack().flush(talk.names(), FlowFilter(service="default/web")) == 1
    assert (talk.flows(), talk.rows()) == ([], 0)
    talk.asks((VIP[family], 80), "A")
    [flow] = talk.flows()
    assert flow.state is State.ESTABLISHED


@families
def test_further_flows_of_a_port_outlive_the_first(dp: Datapath, family: int) -> None:
    dp.serve(served(family, POD, protocol=UDP), served(family, OTHER_POD, OTHER_VIP, UDP, "other"))
    talk = Talk(dp, family, UDP)
    talk.asks((VIP[family], 80))
    talk.asks((OTHER_VIP[family], 80))
    first, further = talk.flows()
    assert (first.service, further.service) == ("default/web", "default/other")
    vip = Place.parse(f"[{VIP[family]}]:80")
    assert talk.conntrack().flush(talk.names(), FlowFilter(vip=vip)) == 1
    assert [flow.service for flow in talk.flows()] == ["default/other"]
    talk.asks((OTHER_VIP[family], 80))
    assert dp.counted() == {"XDP.TRANSLATED": 2, "XDP.REUSED": 1}
    talk.clock.seconds = 31
    assert talk.sweep() == 3
    assert talk.rows() == 0


@families
def test_a_first_flow_that_was_ended_where_it_stands_begins_anew(dp: Datapath, family: int) -> None:
    dp.serve(served(family, POD, protocol=UDP), served(family, OTHER_POD, OTHER_VIP, UDP, "other"))
    talk = Talk(dp, family, UDP)
    talk.asks((VIP[family], 80))
    talk.asks((OTHER_VIP[family], 80))
    vip = Place.parse(f"[{VIP[family]}]:80")
    assert talk.conntrack().flush(talk.names(), FlowFilter(vip=vip)) == 1
    talk.asks((VIP[family], 80))
    assert dp.counted() == {"XDP.TRANSLATED": 3}
    assert [flow.service for flow in talk.flows()] == ["default/web", "default/other"]
