"""Flows whose time is over are forgotten; what is alive stays."""

from __future__ import annotations

import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfproxy.datapath.maps import Map
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.ebpf import collector
from bpfproxy.proxiers.ebpf.collector import Collector
from bpfproxy.proxiers.ebpf.conntrack import Conntrack
from bpfproxy.proxiers.ebpf.packet import Timeouts
from bpfproxy.proxiers.ebpf.snapshot import Maps
from tests.lab.conntrack.flow_rows import ANSWERED, FIN, RESET, SEEN, Clock, Writer, fill
from tests.lab.conntrack.flows import (
    CLIENT,
    CLIENT6,
    DNS,
    MAPS,
    NODE,
    OPEN,
    POD,
    POD2,
    POD6,
    SILENT,
    TCP,
    UDP,
    WEB,
    WEB6,
    backends,
    flows,
    sweep,
)


class TestCollecting:
    CASES = (
        (TCP, SILENT, 120),
        (TCP, OPEN, 86400),
        (TCP, (SEEN | ANSWERED | FIN, SEEN | ANSWERED), 3600),
        (TCP, (SEEN | ANSWERED | FIN, SEEN | ANSWERED | FIN), 120),
        (TCP, (SEEN | ANSWERED, SEEN | RESET), 10),
        (UDP, SILENT, 30),
        (UDP, (SEEN, SEEN), 120),
        (Protocol.SCTP, (SEEN, SEEN), 210),
    )

    @pytest.mark.parametrize("wraps", [False, True], ids=["", "clock wraps"])
    def test_each_has_its_time(self, maps: Maps, wraps: bool) -> None:
        for protocol, sides, timeout in self.CASES:
            clock = Clock((1 << 32) - 100 if wraps else 1 << 31)
            conntrack, rows = Conntrack(maps, Timeouts(), clock), Writer(maps, clock)
            rows.add(CLIENT, WEB, POD, protocol, sides=sides)
            rows.add((CLIENT[0], 40001), WEB, POD, protocol, sides=sides, source=NODE)
            rows.add(CLIENT6, WEB6, POD6, protocol, sides=sides)
            clock.pass_(timeout - 1)
            assert sweep(Collector(conntrack)).expired_flows == 0
            clock.pass_(2)
            assert sweep(Collector(conntrack)).expired_flows == 4, (protocol, sides)
            assert rows.rows(*MAPS) == dict.fromkeys(MAPS, 0)

    def test_the_first_row_stays_while_further_flows_live(
        self, conntrack: Conntrack, rows: Writer, clock: Clock
    ) -> None:
        rows.add(CLIENT, WEB, POD, UDP, sides=SILENT)
        rows.add(CLIENT, DNS, POD2, UDP, further=True)
        clock.pass_(60)
        assert sweep(Collector(conntrack)).expired_flows == 0
        assert [flow.vip_port for flow in flows(conntrack)] == [53]
        clock.pass_(120)
        assert sweep(Collector(conntrack)).expired_flows == 3
        assert rows.rows(*MAPS) == dict.fromkeys(MAPS, 0)

    def test_a_first_row_that_ran_out_in_the_sweep_waits_for_the_next(
        self, conntrack: Conntrack, rows: Writer, clock: Clock
    ) -> None:
        # Until it ran out, a program could begin a further flow beside it, where the sweep had been already.
        rows.add(CLIENT, WEB, POD, UDP, sides=SILENT)
        rows.add(CLIENT, DNS, POD2, UDP, further=True, idle=100)
        clock.pass_(29)
        choice = collector.Expired(conntrack)
        steps = conntrack.prune(conntrack.tables[0], choice)
        assert next(steps)[1:] == (2, 2)  # the further one and its replies
        clock.pass_(2)
        assert [step[1:] for step in steps] == [(1, 0)]
        assert sweep(Collector(conntrack)).expired_flows == 1

    def test_a_row_that_came_to_life_is_put_back(
        self, maps: Maps, conntrack: Conntrack, rows: Writer, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows.add(CLIENT, WEB, POD, UDP, sides=SILENT)
        clock.pass_(31)

        def take(map_: Map, key: bytes) -> bytes | None:
            rows.add(CLIENT, DNS, POD2, UDP, sides=SILENT)  # as the datapath does with a row whose time is over
            return real(map_, key)

        real = Map.take
        monkeypatch.setattr(Map, "take", take)
        assert sweep(Collector(conntrack)).expired_flows == 0
        assert backends(conntrack) == ["10.244.1.2:8080"]

    def test_a_program_that_was_faster_wins(
        self, conntrack: Conntrack, rows: Writer, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows.add(CLIENT, WEB, POD, UDP, sides=SILENT)
        clock.pass_(31)

        def take(map_: Map, key: bytes) -> bytes | None:
            rows.refresh(CLIENT, UDP)
            value = real(map_, key)
            rows.add(CLIENT, DNS, POD2, UDP, sides=SILENT)
            return value

        real = Map.take
        monkeypatch.setattr(Map, "take", take)
        assert sweep(Collector(conntrack)).expired_flows == 0
        assert backends(conntrack) == ["10.244.1.2:8080"]

    def test_a_run_is_bounded(
        self, maps: Maps, conntrack: Conntrack, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bpfproxy.proxiers.ebpf.conntrack.CHUNK", 64)
        monkeypatch.setattr(collector, "REMOVED_PER_RUN", 100)
        fill(maps, clock, 1000, idle=[0, 90_000])
        found = Collector(conntrack)
        first = found.run()
        assert first.delay == collector.PAUSE
        assert 100 <= first.expired_flows < 300
        assert first.expired_flows + sweep(found).expired_flows == 500
        assert sweep(found).expired_flows == 0

    def test_a_map_that_fills_up_is_told_once(
        self, maps: Maps, conntrack: Conntrack, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        found = Collector(conntrack)
        at_most = maps["flows4"].max_entries
        empty = sweep(found)
        assert (empty.delay, empty.nearly_full) == (collector.LONGEST, ())
        fill(maps, clock, at_most * 19 // 20, idle=[0, 80_000])
        with caplog.at_level(logging.WARNING):
            full = sweep(found)
            assert full.nearly_full == ("flows4",)
            assert full.delay == collector.SHORTEST
            assert sweep(found).nearly_full == ()
        [message] = caplog.messages
        assert message.startswith("event=nearly_full map=flows4 rows=")
        assert message.endswith(f"at_most={at_most} setting=--max-flows")
        clock.pass_(10_000)
        relieved = sweep(found)
        assert relieved.expired_flows > at_most // 3
        assert relieved.delay > collector.SHORTEST
        fill(maps, clock, at_most * 19 // 20, idle=[0])
        assert sweep(found).nearly_full == ("flows4",)

    @settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 5),  # client's port
                st.integers(0, 4),  # VIP
                st.sampled_from([TCP, UDP]),
                st.tuples(st.integers(1, 15), st.integers(0, 15)),
                st.sampled_from([0.0, 9.0, 11.0, 29.0, 31.0, 119.0, 121.0, 3599.0, 3601.0, 86399.0, 86401.0]),
                st.booleans(),  # source translated
            ),
            max_size=25,
            unique_by=lambda item: item[:3],
        ),
        st.integers(0, (1 << 32) - 1),
    )
    def test_a_sweep_changes_nothing_that_is_to_be_seen(
        self, maps: Maps, drawn: list[tuple[int, int, Protocol, tuple[int, int], float, bool]], start: int
    ) -> None:
        clock = Clock(start)
        conntrack, rows = Conntrack(maps, Timeouts(), clock), Writer(maps, clock)
        for map_ in (maps[name] for name in MAPS):
            for key, _ in list(map_.items()):
                map_.delete(key)
        ports: set[tuple[int, Protocol]] = set()
        for number, (port, vip, protocol, sides, idle, translated) in enumerate(drawn):
            source = (NODE[0], 61000 + number) if translated else None
            further = (port, protocol) in ports
            ports.add((port, protocol))
            pod = ("10.244.1.1", 8000 + number)
            ends = (CLIENT[0], 40000 + port), (f"10.96.0.{vip}", 80), pod
            rows.add(*ends, protocol, sides=sides, idle=idle, further=further, source=source)
        before = flows(conntrack)
        removed = sweep(Collector(conntrack)).expired_flows
        assert flows(conntrack) == before
        # First rows that lead to others are all that is left of what was over.
        left = rows.rows("flows4", "tuples4")
        assert removed + sum(left.values()) >= len(drawn)
        leads = {(flow.client_port, flow.protocol) for flow in before}
        assert left["flows4"] <= len(leads)
        assert sweep(Collector(conntrack)).expired_flows == 0
