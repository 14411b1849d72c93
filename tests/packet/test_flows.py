"""What lasts longer than a packet: states, port re-use, clashes of replies, policies, affinity, hairpin."""

from __future__ import annotations

from typing import Any

import pytest

from bpfproxy.datapath import abi
from bpfproxy.model.frontend import FrontendKind, Masquerade
from bpfproxy.model.service import Protocol, Scheduler
from bpfproxy.proxiers.ebpf.packet import ticks
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
    Scope,
    Service,
    backend,
    frontend,
)
from tests.packet.packets import Ether, frame, same
from tests.packet.test_forward import ARRIVES, HOOK, families, service

layers = pytest.mark.parametrize("layer", ["xdp", "tc"])
Address = tuple[str, int]


def ends(raw: bytes) -> tuple[Address, Address]:
    """(source, destination) of a packet."""
    packet: Any = Ether(raw)
    ip = packet.payload
    return (ip.src, ip.payload.sport), (ip.dst, ip.payload.dport)


def many(family: int, count: int) -> tuple[Any, ...]:
    prefix = "10.1.1." if family == 4 else "fd00:1:1::"
    return tuple(backend(f"{prefix}{number}", 8080) for number in range(20, 20 + count))


@layers
@families
def test_tcp_from_syn_to_reuse_of_the_port(dp: Datapath, layer: Layer, family: int) -> None:
    dp.serve(Service(frontend(VIP[family], 80), many(family, 5)))
    client, vip = (CLIENT[family], 40000), (VIP[family], 80)

    def send(flags: str) -> Address:
        return ends(dp.run(ARRIVES[layer], frame(Protocol.TCP, client, vip, flags=flags)).packet)[1]

    def answer(flags: str) -> Address:
        return ends(dp.run("tc_out", frame(Protocol.TCP, pod, client, flags=flags)).packet)[0]

    pod = send("S")
    assert send("S") == pod  # again, since no answer came
    assert answer("SA") == vip
    assert [send("A"), send("PA")] == [pod, pod]
    dp.serve(Service(frontend(VIP[family], 80), (backend(OTHER_VIP[family], 1),)))
    assert send("A") == pod, "a connection outlives its endpoint's membership"
    assert [send("FA"), answer("FA")] == [pod, vip]
    assert [send("A"), answer("A")] == [pod, vip], "late segments still find their way"
    assert send("S") == (OTHER_VIP[family], 1), "a new connection from the same port is a new choice"
    counted = dp.counted()
    assert counted[f"{HOOK[layer]}.TRANSLATED"] == 2


@layers
@families
def test_reset_ends_a_flow(dp: Datapath, layer: Layer, family: int) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.TCP, local=True))
    client, vip = (CLIENT[family], 40000), (VIP[family], 80)
    for flags in ("S", "A", "R", "S"):
        dp.run(ARRIVES[layer], frame(Protocol.TCP, client, vip, flags=flags))
    assert dp.counted() == {f"{HOOK[layer]}.TRANSLATED": 2, f"{HOOK[layer]}.REUSED": 2}


@layers
@families
@pytest.mark.parametrize("scheduler", [Scheduler.MAGLEV, Scheduler.RANDOM])
def test_tcp_without_syn(dp: Datapath, layer: Layer, family: int, scheduler: Scheduler) -> None:
    """Where the choice is consistent it is made again, and is the same; else the packet is left alone."""
    dp.serve(Service(frontend(VIP[family], 80), many(family, 5), scheduler=scheduler))
    client, vip = (CLIENT[family], 40000), (VIP[family], 80)
    raw = frame(Protocol.TCP, client, vip, flags="A")
    first = dp.run(ARRIVES[layer], raw)
    if scheduler is Scheduler.RANDOM:
        same(first.packet, raw)
        assert dp.counted() == {f"{HOOK[layer]}.NOT_SYN": 1}
        return
    name = f"flows{family}"
    for key in list(dp.flows(name)):
        dp.maps[name].delete(key)
    assert dp.run(ARRIVES[layer], raw).packet == first.packet != raw


@layers
@families
@pytest.mark.parametrize("backends", [0, 1, 5])
def test_tcp_without_syn_on_a_shared_node(dp: Datapath, layer: Layer, family: int, backends: int) -> None:
    """Another mode's rules may have opened the connection: left alone, whatever the frontend says now. New ones, and
    those that were opened here, are not."""
    served = Service(frontend(VIP[family], 80), many(family, backends), source_ranges=[(NODE[family], 32)])
    dp.serve(served)
    dp.set_node(1, shared=True)
    client, vip = (CLIENT[family], 40000), (VIP[family], 80)
    for flags in ("A", "PA", "FA", "R", "SA"):
        raw = frame(Protocol.TCP, client, vip, flags=flags)
        same(dp.run(ARRIVES[layer], raw).packet, raw)
    assert dp.counted() == {f"{HOOK[layer]}.NOT_SYN": 5}
    if not backends:
        return
    vip = (OTHER_VIP[family], 80)
    dp.serve(Service(frontend(*vip), many(family, backends)))
    opened = ends(dp.run(ARRIVES[layer], frame(Protocol.TCP, client, vip, flags="S")).packet)
    assert opened[1] != vip
    for flags in ("A", "PA", "FA"):
        assert ends(dp.run(ARRIVES[layer], frame(Protocol.TCP, client, vip, flags=flags)).packet) == opened


@layers
@families
@pytest.mark.parametrize("ends_with", [["FA", "A"], ["R"]], ids=["closed", "reset"])
@pytest.mark.parametrize("pod", [POD, REMOTE_POD], ids=["local", "remote"])
def test_a_port_goes_on_with_a_connection_past_us(
    dp: Datapath, layer: Layer, family: int, pod: dict[int, str], ends_with: list[str]
) -> None:
    """The Service has gone to another mode, whose rules open a connection from a port that a closed flow has had."""
    dp.serve(Service(frontend(VIP[family], 80), (backend(pod[family], 8080, local=pod is POD),)))
    client, vip = (CLIENT[family], 40000), (VIP[family], 80)

    def send(flags: str) -> bytes:
        return dp.run(ARRIVES[layer], frame(Protocol.TCP, client, vip, flags=flags)).packet

    source, to = ends(send("S"))
    answered = "tc_out" if pod is POD else ARRIVES[layer]
    dp.run(answered, frame(Protocol.TCP, to, source, flags="SA"))
    send("A")
    dp.run(answered, frame(Protocol.TCP, to, source, flags="FA"))
    for flags in ends_with:
        assert ends(send(flags)) == (source, to)
    dp.serve()
    for flags in ("S", "A", "PA", "FA"):
        same(send(flags), frame(Protocol.TCP, client, vip, flags=flags))


@layers
@families
@pytest.mark.parametrize("pod", [POD, REMOTE_POD], ids=["local", "remote"])
def test_replies_to_a_connection_past_us(dp: Datapath, layer: Layer, family: int, pod: dict[int, str]) -> None:
    """One to the backend itself, from the port of a closed flow; conntrack may have chosen that port, too."""
    dp.serve(Service(frontend(VIP[family], 80), (backend(pod[family], 8080, local=pod is POD),)))
    client, vip = (CLIENT[family], 40000), (VIP[family], 80)
    answered = "tc_out" if pod is POD else ARRIVES[layer]
    source, to = ends(dp.run(ARRIVES[layer], frame(Protocol.TCP, client, vip, flags="S")).packet)
    for flags in ("SA", "FA"):
        assert ends(dp.run(answered, frame(Protocol.TCP, to, source, flags=flags)).packet) == (vip, client)
        dp.run(ARRIVES[layer], frame(Protocol.TCP, client, vip, flags=flags.replace("S", "")))
    for flags in ("SA", "A", "PA", "FA"):
        raw = frame(Protocol.TCP, to, source, flags=flags)
        same(dp.run(answered, raw).packet, raw)


@layers
@families
def test_udp_leaves_a_backend_that_is_gone(dp: Datapath, layer: Layer, family: int) -> None:
    def served(address: str) -> Service:
        return Service(frontend(VIP[family], 53, Protocol.UDP), (backend(address, 53, Protocol.UDP),))

    raw = frame(Protocol.UDP, (CLIENT[family], 5353), (VIP[family], 53))
    for address in (POD[family], REMOTE_POD[family], POD[family]):
        dp.serve(served(address))
        for _ in range(2):
            assert ends(dp.run(ARRIVES[layer], raw).packet)[1] == (address, 53)


@layers
@families
def test_two_vips_one_backend(dp: Datapath, layer: Layer, family: int) -> None:
    """The second flow's replies would be the first one's: its port is translated, its address stays."""
    pod = backend(POD[family], 8080)
    dp.serve(
        Service(frontend(VIP[family], 80), (pod,), name="one"),
        Service(frontend(OTHER_VIP[family], 80), (pod,), name="two"),
    )
    client, address = (CLIENT[family], 40000), (POD[family], 8080)
    for _ in range(2):
        out = dp.run(ARRIVES[layer], frame(Protocol.TCP, client, (VIP[family], 80)))
        assert ends(out.packet) == (client, address)
        out = dp.run(ARRIVES[layer], frame(Protocol.TCP, client, (OTHER_VIP[family], 80)))
        assert out.verdict == pk.PASS[layer]
        moved, to = ends(out.packet)
        assert to == address
        assert moved[0] == CLIENT[family]
        assert SNAT[0] <= moved[1] <= SNAT[1]
        assert pk.checksums_hold(out.packet)
    out = dp.run("tc_out", frame(Protocol.TCP, address, client, flags="SA"))
    same(out.packet, frame(Protocol.TCP, (VIP[family], 80), client, flags="SA"))
    out = dp.run("tc_out", frame(Protocol.TCP, address, moved, flags="SA"))
    same(out.packet, frame(Protocol.TCP, (OTHER_VIP[family], 80), client, flags="SA"))


@layers
@families
@pytest.mark.parametrize("direct_first", [True, False])
def test_vip_and_direct_connection(dp: Datapath, layer: Layer, family: int, direct_first: bool) -> None:
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.TCP, local=True))
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (POD[family], 8080)
    first, second = (pod, vip) if direct_first else (vip, pod)
    assert ends(dp.run(ARRIVES[layer], frame(Protocol.TCP, client, first)).packet) == (client, pod)
    moved, to = ends(dp.run(ARRIVES[layer], frame(Protocol.TCP, client, second)).packet)
    assert to == pod
    assert moved[0] == client[0]
    assert moved[1] != client[1]
    assert ends(dp.run("tc_out", frame(Protocol.TCP, pod, client, flags="SA")).packet) == (first, client)
    assert ends(dp.run("tc_out", frame(Protocol.TCP, pod, moved, flags="SA")).packet) == (second, client)


@layers
@families
def test_one_port_to_several_backends(dp: Datapath, layer: Layer, family: int) -> None:
    """No clash, so no port is translated."""
    dp.serve(
        Service(frontend(VIP[family], 80), (backend(POD[family], 8080),), name="one"),
        Service(frontend(OTHER_VIP[family], 80), (backend(POD[family], 8081),), name="two"),
    )
    client = (CLIENT[family], 40000)
    for vip, port in ((VIP, 8080), (OTHER_VIP, 8081)):
        for flags in ("S", "A"):
            out = dp.run(ARRIVES[layer], frame(Protocol.TCP, client, (vip[family], 80), flags=flags))
            assert ends(out.packet) == (client, (POD[family], port))
        reply = frame(Protocol.TCP, (POD[family], port), client, flags="SA")
        assert ends(dp.run("tc_out", reply).packet) == ((vip[family], 80), client)


@layers
@families
def test_source_ports_run_out(dp: Datapath, layer: Layer, family: int) -> None:
    """Each flow has a port of its own, until none is left: then packets are dropped, and counted."""
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.TCP, local=False))
    size = SNAT[1] - SNAT[0] + 1
    ports = []
    for number in range(2 * size):
        out = dp.run(ARRIVES[layer], frame(Protocol.TCP, (CLIENT[family], 1024 + number), (VIP[family], 80)))
        if out.verdict == pk.SENT[layer]:
            ports.append(ends(out.packet)[0][1])
        else:
            assert out.verdict == pk.DROP[layer]
    assert len(set(ports)) == len(ports)
    assert len(ports) > size // 2
    assert dp.counted() == {
        f"{HOOK[layer]}.TRANSLATED": len(ports),
        f"{HOOK[layer]}.SNAT_EXHAUSTED": 2 * size - len(ports),
    }


@layers
@families
@pytest.mark.parametrize("local", [True, False], ids=["local", "remote"])
@pytest.mark.parametrize("masquerade", list(Masquerade), ids=lambda masquerade: masquerade.name)
@pytest.mark.parametrize("kind", [FrontendKind.CLUSTER_IP, FrontendKind.NODE_PORT], ids=lambda kind: kind.name)
@pytest.mark.parametrize("inside", [True, False], ids=["pod", "outside"])
def test_who_is_masqueraded(
    dp: Datapath, layer: Layer, family: int, local: bool, masquerade: Masquerade, kind: FrontendKind, inside: bool
) -> None:
    dp.serve(service(kind, family, Protocol.TCP, local=local, masquerade=masquerade))
    client = (("10.1.1.77" if family == 4 else "fd00:1:1::77") if inside else CLIENT[family], 40000)
    vip = (VIP[family], 80) if kind is FrontendKind.CLUSTER_IP else (NODE[family], 30080)
    source, _ = ends(dp.arrive(layer, frame(Protocol.TCP, client, vip)).packet)
    if local:
        wanted = masquerade is Masquerade.ALWAYS and kind is FrontendKind.CLUSTER_IP
    else:
        wanted = masquerade is Masquerade.ALWAYS or not inside
    assert source[0] == (NODE[family] if wanted else client[0])


@layers
@families
def test_hairpin(dp: Datapath, layer: Layer, family: int) -> None:
    """A pod that is its own backend sees the node, and is answered by the VIP. Its veth takes nothing from XDP."""
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.TCP, local=True))
    pod, vip = (POD[family], 40000), (VIP[family], 80)
    out = dp.arrive(layer, frame(Protocol.TCP, pod, vip))
    assert out.verdict == pk.TC_REDIRECT
    node, to = ends(out.packet)
    assert to == (POD[family], 8080)
    assert node[0] == NODE[family]
    out = dp.arrive(layer, frame(Protocol.TCP, to, node, flags="SA"))
    assert out.verdict == pk.TC_REDIRECT
    same(
        out.packet,
        frame(Protocol.TCP, vip, pod, flags="SA", hops=63, macs=(pk.POD_GATEWAY_MAC, pk.POD_MAC)),
    )


@layers
@families
def test_source_ranges(dp: Datapath, layer: Layer, family: int) -> None:
    """They bind clients outside the cluster."""
    served = service(
        FrontendKind.LOAD_BALANCER,
        family,
        Protocol.TCP,
        local=True,
        source_ranges=[("198.51.100.0", 24) if family == 4 else ("2001:db8:51::", 64)],
    )
    dp.serve(served)
    stranger = {4: "203.0.113.1", 6: "2001:db8:99::1"}[family]
    pod = {4: "10.1.9.9", 6: "fd00:1:9::9"}[family]
    for source, verdict in ((CLIENT[family], pk.PASS), (stranger, pk.DROP), (pod, pk.PASS)):
        out = dp.run(ARRIVES[layer], frame(Protocol.TCP, (source, 1), (OTHER_VIP[family], 80)))
        assert out.verdict == verdict[layer], source
    assert dp.counted() == {f"{HOOK[layer]}.TRANSLATED": 2, f"{HOOK[layer]}.SOURCE_RANGE": 1}


@layers
@families
def test_scopes(dp: Datapath, layer: Layer, family: int) -> None:
    """Pods and outside clients are led to different sets."""
    dp.serve(
        Service(frontend(VIP[family], 80), (backend(POD[family], 1),), scoped=True, name="external"),
        Service(frontend(VIP[family], 80, scope=Scope.INTERNAL), (backend(POD[family], 2),), name="internal"),
    )
    pod = {4: "10.1.9.9", 6: "fd00:1:9::9"}[family]
    for source, port in ((CLIENT[family], 1), (pod, 2)):
        out = dp.run(ARRIVES[layer], frame(Protocol.TCP, (source, 7), (VIP[family], 80)))
        assert ends(out.packet)[1] == (POD[family], port)


@layers
@families
def test_affinity_is_the_clients_address(dp: Datapath, layer: Layer, family: int) -> None:
    dp.serve(Service(frontend(VIP[family], 80), many(family, 8), affinity=60))
    chosen = {
        ends(dp.run(ARRIVES[layer], frame(Protocol.TCP, (CLIENT[family], port), (VIP[family], 80))).packet)[1]
        for port in range(1000, 1040)
    }
    assert len(chosen) == 1


@layers
@families
def test_maglev_spreads(dp: Datapath, layer: Layer, family: int) -> None:
    dp.serve(Service(frontend(VIP[family], 80), many(family, 4)))
    chosen = [
        ends(dp.run(ARRIVES[layer], frame(Protocol.TCP, (CLIENT[family], port), (VIP[family], 80))).packet)[1]
        for port in range(1000, 1200)
    ]
    assert len(set(chosen)) == 4
    assert max(map(chosen.count, chosen)) < 100


@layers
@families
def test_a_new_route_is_noticed(dp: Datapath, layer: Layer, family: int) -> None:
    """A flow's next hop holds as long as the generation."""
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.TCP, local=False))
    raw = frame(Protocol.TCP, (CLIENT[family], 40000), (VIP[family], 80))
    for _ in range(2):
        assert dp.run(ARRIVES[layer], raw).packet[:6] == bytes.fromhex("020000000205")
    row, name = next((row, key) for key, row in dp.flows(f"flows{family}").items())
    row.hop.destination[5] = 0x77  # as if the neighbour had been another one
    dp.maps[f"flows{family}"].update(name, bytes(abi.ffi.buffer(row)))
    assert dp.run(ARRIVES[layer], raw).packet[:6] == bytes.fromhex("020000000277")
    dp.set_node(2)
    assert dp.run(ARRIVES[layer], raw).packet[:6] == bytes.fromhex("020000000205")


@layers
@families
def test_packets_and_bytes(dp: Datapath, layer: Layer, family: int) -> None:
    served = service(FrontendKind.CLUSTER_IP, family, Protocol.UDP, local=True)
    dp.serve(served)
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (POD[family], 8080)
    raw = frame(Protocol.UDP, client, vip)
    for _ in range(3):
        dp.run(ARRIVES[layer], raw)
    dp.run("tc_out", frame(Protocol.UDP, pod, client))
    stats = dp.frontend_stats(served.frontend)
    assert stats == {"connections": [0, 0, 1], "packets": [3, 1], "bytes": [3 * (len(raw) - 14), len(raw) - 14]}


@layers
@families
@pytest.mark.parametrize(
    ("protocol", "steps", "seconds"),
    [
        (Protocol.TCP, "S", 120),
        (Protocol.TCP, "SA", 86400),
        (Protocol.TCP, "SAF", 3600),
        (Protocol.TCP, "SAR", 10),
        (Protocol.UDP, "-", 30),
        (Protocol.UDP, "-<", 120),
        (Protocol.SCTP, "-", 210),
    ],
)
def test_idle_flows_expire(
    dp: Datapath, layer: Layer, family: int, protocol: Protocol, steps: str, seconds: int
) -> None:
    """Just before its time a flow is there, just after it a packet is the first of a new one."""
    dp.serve(service(FrontendKind.CLUSTER_IP, family, protocol, local=True))
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (POD[family], 8080)

    def play() -> None:
        for step in steps:
            if step == "<":
                dp.run("tc_out", frame(protocol, pod, client))
            else:
                dp.run(ARRIVES[layer], frame(protocol, client, vip, flags=step.replace("-", "S")))

    def later(idle: float) -> bool:
        """Whether the next packet finds the flow after so many seconds."""
        name = f"flows{family}"
        [(key, row)] = dp.flows(name).items()
        row.seen = (row.seen - ticks(idle)) & 0xFFFFFFFF
        dp.maps[name].update(key, bytes(abi.ffi.buffer(row)))
        before = dp.counted().get(f"{HOOK[layer]}.REUSED", 0)
        dp.run(ARRIVES[layer], frame(protocol, client, vip, flags="A"))
        return dp.counted().get(f"{HOOK[layer]}.REUSED", 0) > before

    play()
    assert later(seconds - 2)
    dp.maps[f"flows{family}"].delete(next(iter(dp.flows(f"flows{family}"))))
    play()
    assert not later(seconds + 2)


@layers
@families
def test_a_lost_reply_row_is_restored(dp: Datapath, layer: Layer, family: int) -> None:
    """A client's packet that refreshes its flow checks that replies would find it."""
    dp.serve(service(FrontendKind.CLUSTER_IP, family, Protocol.TCP, local=False))
    client, vip, remote = (CLIENT[family], 40000), (VIP[family], 80), (REMOTE_POD[family], 8080)
    node, _ = ends(dp.run(ARRIVES[layer], frame(Protocol.TCP, client, vip)).packet)
    dp.run(ARRIVES[layer], frame(Protocol.TCP, client, vip, flags="A"))
    dp.maps[f"tuples{family}"].delete(next(iter(dp.flows(f"tuples{family}"))))
    assert dp.run(ARRIVES[layer], frame(Protocol.TCP, remote, node, flags="A")).verdict == pk.PASS[layer]
    [(key, row)] = dp.flows(f"flows{family}").items()
    row.seen = (row.seen - ticks(5)) & 0xFFFFFFFF
    dp.maps[f"flows{family}"].update(key, bytes(abi.ffi.buffer(row)))
    assert ends(dp.run(ARRIVES[layer], frame(Protocol.TCP, client, vip, flags="A")).packet)[0] == node
    out = dp.run(ARRIVES[layer], frame(Protocol.TCP, remote, node, flags="A"))
    assert out.verdict == pk.SENT[layer]
    assert ends(out.packet) == (vip, client)
