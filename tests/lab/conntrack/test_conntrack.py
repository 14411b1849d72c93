"""Conntrack on real maps: flows are read, and flushed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bpfproxy.datapath import abi
from bpfproxy.datapath.maps import Map
from bpfproxy.model.address import parse_address
from bpfproxy.model.flow import FlowFilter, Place, State
from bpfproxy.proxiers.base import Op, Tended
from bpfproxy.proxiers.ebpf import collector, flowcodec
from bpfproxy.proxiers.ebpf.collector import Collector
from bpfproxy.proxiers.ebpf.conntrack import Conntrack
from bpfproxy.proxiers.ebpf.packet import Timeouts
from bpfproxy.proxiers.ebpf.snapshot import Maps
from tests.lab.conftest import NewMaps
from tests.lab.conntrack.flow_rows import Clock, End, Writer, fill
from tests.lab.conntrack.flows import (
    CLIENT,
    CLIENT6,
    DNS,
    MAPS,
    NO_NAMES,
    NODE,
    NODE6,
    POD,
    POD2,
    POD6,
    SILENT,
    TCP,
    UDP,
    WEB,
    WEB6,
    agent_applies,
    backends,
    flows,
    service,
    sweep,
)


class TestReading:
    @pytest.mark.parametrize(
        ("client", "vip", "pod", "node"), [(CLIENT, WEB, POD, NODE), (CLIENT6, WEB6, POD6, NODE6)], ids=["v4", "v6"]
    )
    def test_a_flow_of_either_kind(
        self, conntrack: Conntrack, rows: Writer, client: End, vip: End, pod: End, node: End
    ) -> None:
        rows.add(client, vip, pod, age=30, idle=10)
        rows.add((client[0], 40001), vip, pod, source=node, sides=SILENT)
        plain, translated = flows(conntrack)
        assert (plain.client, plain.client_port) == (parse_address(client[0]), client[1])
        assert (plain.vip, plain.vip_port) == (parse_address(vip[0]), vip[1])
        assert (plain.backend, plain.backend_port) == (parse_address(pod[0]), pod[1])
        assert (plain.protocol, plain.state, plain.orphan) == (TCP, State.ESTABLISHED, False)
        assert not plain.source_translated
        assert plain.age == pytest.approx(30, abs=0.1)
        assert plain.expires == pytest.approx(86390, abs=0.1)
        assert (translated.source, translated.source_port) == (parse_address(node[0]), node[1])
        assert (translated.client_port, translated.state, translated.orphan) == (40001, State.SYN_SENT, False)
        assert translated.source_translated

    def test_further_flows_of_a_port(self, conntrack: Conntrack, rows: Writer) -> None:
        rows.add(CLIENT, WEB, POD, UDP)
        rows.add(CLIENT, DNS, POD2, UDP, further=True)
        rows.add(CLIENT, ("10.96.0.3", 1), POD, UDP, further=True, source=(CLIENT[0], 61002))
        found = flows(conntrack)
        assert [flow.vip_port for flow in found] == [80, 53, 1]
        assert [flow.orphan for flow in found] == [False] * 3
        assert [flow.source_port for flow in found] == [40000, 40000, 61002]

    def test_a_reply_that_lost_its_flow(self, conntrack: Conntrack, rows: Writer) -> None:
        rows.add(CLIENT, WEB, POD, source=NODE, forward=False)
        [flow] = flows(conntrack)
        assert flow.orphan
        assert (flow.client_port, flow.source_port, flow.backend_port) == (40000, 61001, 8080)
        assert (flow.client, flow.source) == (parse_address(CLIENT[0]), parse_address(NODE[0]))

    def test_what_is_over_is_not_there(self, conntrack: Conntrack, rows: Writer, clock: Clock) -> None:
        rows.add(CLIENT, WEB, POD, source=NODE, sides=SILENT)
        clock.pass_(119)
        assert len(flows(conntrack)) == 1
        clock.pass_(2)
        assert flows(conntrack) == []

    def test_filters(self, conntrack: Conntrack, rows: Writer) -> None:
        rows.add(CLIENT, WEB, POD, source=NODE)
        rows.add(CLIENT6, WEB6, POD6)
        rows.add(CLIENT, DNS, POD2, UDP)
        assert len(flows(conntrack, FlowFilter(family=6))) == 1
        assert len(flows(conntrack, FlowFilter(protocol=UDP))) == 1
        assert len(flows(conntrack, FlowFilter(vip=Place.parse("10.96.0.0/16")))) == 2
        assert flows(conntrack, FlowFilter(backend=Place.parse("10.244.1.9"))) == []

    def test_a_hundred_thousand_in_half_a_second(self, state: Path, new_maps: NewMaps, clock: Clock) -> None:
        maps = new_maps(state / "bpf" / "maps-large", flows=1 << 18)
        conntrack = Conntrack(maps, Timeouts(), clock)
        fill(maps, clock, 100_000, idle=[0])
        times = []
        for _ in range(3):
            begin = time.process_time()
            assert sum(1 for _ in conntrack.read(NO_NAMES)) == 100_000
            times.append(time.process_time() - begin)
        assert min(times) < 0.5

    def test_no_packet_level(self, maps: Maps) -> None:
        socket_level = {name: map_ for name, map_ in maps.items() if name not in MAPS}
        conntrack = Conntrack(socket_level, Timeouts())
        assert (list(conntrack.read(NO_NAMES)), conntrack.flush(NO_NAMES), conntrack.forget({(1, 1)})) == ([], 0, 0)
        assert Collector(conntrack).run() == Tended()


class TestRemoving:
    def test_all(self, conntrack: Conntrack, rows: Writer) -> None:
        rows.add(CLIENT, WEB, POD, source=NODE)
        rows.add(CLIENT6, WEB6, POD6)
        rows.add(CLIENT, DNS, POD2, UDP)
        assert conntrack.flush(NO_NAMES) == 3
        assert rows.rows(*MAPS) == dict.fromkeys(MAPS, 0)
        assert conntrack.flush(NO_NAMES) == 0

    def test_some(self, conntrack: Conntrack, rows: Writer) -> None:
        rows.add(CLIENT, WEB, POD, source=NODE)
        rows.add((CLIENT[0], 2), WEB, POD2)
        rows.add(CLIENT6, WEB6, POD6)
        assert conntrack.flush(NO_NAMES, FlowFilter(backend=Place.parse("10.244.1.1"))) == 1
        assert rows.rows(*MAPS) == {"flows4": 1, "tuples4": 0, "flows6": 1, "tuples6": 0}

    def test_the_first_of_several_is_ended_where_it_stands(self, conntrack: Conntrack, rows: Writer) -> None:
        rows.add(CLIENT, WEB, POD, UDP)
        rows.add(CLIENT, DNS, POD2, UDP, further=True)
        assert conntrack.flush(NO_NAMES, FlowFilter(vip=Place.parse("10.96.0.1"))) == 1
        assert backends(conntrack) == ["10.244.1.2:8080"]
        assert rows.rows("flows4", "tuples4") == {"flows4": 1, "tuples4": 2}
        assert conntrack.flush(NO_NAMES, FlowFilter(vip=Place.parse("10.96.0.2"))) == 1
        assert flows(conntrack) == []
        assert sweep(Collector(conntrack)).expired_flows == 1

    def test_udp_of_backends_that_are_gone(self, conntrack: Conntrack, rows: Writer) -> None:
        rows.add((CLIENT[0], 1), WEB, POD, UDP, target=(5, 1))
        rows.add((CLIENT[0], 2), WEB, POD, UDP, target=(5, 1), source=NODE)
        rows.add((CLIENT[0], 3), WEB, POD, UDP, target=(5, 2))  # the id was given away since
        rows.add((CLIENT[0], 4), WEB, POD, TCP, target=(5, 1))
        rows.add((CLIENT[0], 5), WEB, POD, UDP, target=(6, 1))
        rows.add(CLIENT6, WEB6, POD6, UDP, target=(5, 1))
        assert conntrack.forget({(5, 1)}) == 4
        assert [flow.client_port for flow in flows(conntrack)] == [3, 4, 5]

    def test_a_row_of_another_flow_is_put_back(
        self, conntrack: Conntrack, rows: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows.add(CLIENT, WEB, POD, UDP, target=(5, 1))

        def take(map_: Map, key: bytes) -> bytes | None:
            rows.add(CLIENT, WEB, POD2, UDP, target=(6, 1))
            return real(map_, key)

        real = Map.take
        monkeypatch.setattr(Map, "take", take)
        assert conntrack.forget({(5, 1)}) == 0
        assert backends(conntrack) == ["10.244.1.2:8080"]


def number_of(maps: Maps, pod: End) -> tuple[int, int]:
    """(id, generation) of a backend."""
    for number in range(maps["backends"].max_entries):
        row = maps["backends"].lookup(number.to_bytes(4, "little"))
        assert row is not None
        address, port, _, _, generation = abi.layout("struct backend").unpack(row)
        if address.endswith(parse_address(pod[0])) and port == pod[1].to_bytes(2):
            return number, generation
    raise AssertionError(f"{pod} is no backend")


def test_an_endpoint_that_goes_takes_its_udp_flows_along(maps: Maps) -> None:
    proxier, applied = agent_applies(
        maps, service("dns", DNS, UDP, POD, POD2), service("web", WEB, TCP, ("10.244.1.3", 1))
    )
    rows = Writer(maps, Clock(flowcodec.now()))
    rows.add((CLIENT[0], 1), DNS, POD, UDP, target=number_of(maps, POD), source=NODE)
    rows.add((CLIENT[0], 2), DNS, POD2, UDP, target=number_of(maps, POD2))
    rows.add((CLIENT[0], 3), WEB, ("10.244.1.3", 1), TCP, target=number_of(maps, ("10.244.1.3", 1)))
    wanted = {**proxier.render(service("dns", DNS, UDP, POD2)), **proxier.render(service("web", WEB, TCP))}
    changed = [Op(key, row) for key, row in wanted.items() if applied[key] != row]
    assert proxier.apply(sorted(changed, key=proxier.phase)) == []
    assert [flow.client_port for flow in flows(Conntrack(maps, Timeouts()))] == [2, 3]
    assert proxier.tend().delay > collector.SHORTEST
