"""Conntrack on real maps: flows are read, forgotten when their time is over, and flushed; what is alive stays."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfproxy import api, status
from bpfproxy.cli import cli
from bpfproxy.datapath import abi
from bpfproxy.datapath.maps import Map
from bpfproxy.errors import NotRunningError
from bpfproxy.model.address import format_endpoint, parse_address
from bpfproxy.model.flow import ALL_FLOWS, Flow, FlowFilter, Place, State
from bpfproxy.model.frontend import Backend, Frontend, FrontendKind, FrontendSpec, Pool, ServicePlan, ServicePortName
from bpfproxy.model.service import ObjectName, Protocol
from bpfproxy.proxiers.base import Key, Op, Row, Tended
from bpfproxy.proxiers.ebpf import collector, flowcodec
from bpfproxy.proxiers.ebpf.collector import Collector
from bpfproxy.proxiers.ebpf.conntrack import Conntrack
from bpfproxy.proxiers.ebpf.flowcodec import Names
from bpfproxy.proxiers.ebpf.packet import Timeouts
from bpfproxy.proxiers.ebpf.proxier import EbpfProxier
from bpfproxy.proxiers.ebpf.render import EbpfRenderer
from bpfproxy.proxiers.ebpf.snapshot import Maps
from tests.lab.conftest import NewMaps
from tests.lab.conntrack_rows import ANSWERED, FIN, RESET, SEEN, Clock, End, Writer, fill

TCP, UDP = Protocol.TCP, Protocol.UDP
OPEN, SILENT = (SEEN | ANSWERED, SEEN | ANSWERED), (SEEN, 0)
WEB: End = ("10.96.0.1", 80)
DNS: End = ("10.96.0.2", 53)
POD: End = ("10.244.1.1", 8080)
POD2: End = ("10.244.1.2", 8080)
CLIENT: End = ("192.0.2.7", 40000)
NODE: End = ("192.0.2.1", 61001)
WEB6: End = ("fd00:96::1", 80)
POD6: End = ("fd00:244::1", 8080)
CLIENT6: End = ("2001:db8::7", 40000)
NODE6: End = ("2001:db8::1", 61001)
NO_NAMES = Names({})
MAPS = ("flows4", "tuples4", "flows6", "tuples6")


@pytest.fixture
def maps(state: Path, new_maps: NewMaps) -> Maps:
    return new_maps(state / "bpf" / "maps-test")


@pytest.fixture
def clock() -> Clock:
    return Clock(flowcodec.now())


@pytest.fixture
def conntrack(maps: Maps, clock: Clock) -> Conntrack:
    return Conntrack(maps, Timeouts(), clock)


@pytest.fixture
def rows(maps: Maps, clock: Clock) -> Writer:
    return Writer(maps, clock)


def sweep(found: Collector) -> Tended:
    """Until the sweep is over; all runs in one."""
    expired = 0
    while True:
        done = found.run()
        expired += done.expired_flows
        if done.delay != collector.PAUSE:
            return Tended(done.delay, expired, done.nearly_full)


def flows(conntrack: Conntrack, wanted: FlowFilter = ALL_FLOWS) -> list[Flow]:
    return sorted(conntrack.read(NO_NAMES, wanted), key=lambda flow: (flow.client, flow.client_port, flow.vip))


def backends(conntrack: Conntrack) -> list[str]:
    return [format_endpoint(flow.backend, flow.backend_port) for flow in flows(conntrack)]


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


def agent_applies(maps: Maps, *plans: ServicePlan) -> tuple[EbpfProxier, dict[Key, Row]]:
    """Service tables as an agent writes them."""
    proxier = EbpfProxier(
        maps,
        EbpfRenderer(),
        grace_period=10,
        activate=lambda complete: None,
        destroy_sockets=lambda gone: None,
        close=lambda: None,
    )
    rows: dict[Key, Row] = {}
    for plan in plans:
        rows.update(proxier.render(plan))
    assert proxier.apply(sorted((Op(key, row) for key, row in rows.items()), key=proxier.phase)) == []
    return proxier, rows


def service(name: str, vip: End, protocol: Protocol, *pods: End) -> ServicePlan:
    spec = FrontendSpec(
        ServicePortName(ObjectName("shop", name), "main", protocol),
        FrontendKind.CLUSTER_IP,
        Pool.CLUSTER,
        tuple(Backend(parse_address(address), port, protocol) for address, port in pods),
    )
    return ServicePlan(ObjectName("shop", name), {Frontend(parse_address(vip[0]), vip[1], protocol): spec})


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


# ---- the command line ------------------------------------------------------------------------------------------


def call(state: Path, *args: object) -> Result:
    command = ["conntrack", *(str(arg) for arg in args), "--state-dir", str(state)]
    result = CliRunner().invoke(cli, command, prog_name="bpfproxy")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def node(state: Path, maps: Maps) -> Path:
    """A state directory with flows of some Services."""
    web6 = service("web6", WEB6, TCP, POD6)
    agent_applies(maps, service("web", WEB, TCP, POD), service("dns", DNS, UDP, POD2), web6)
    rows = Writer(maps, Clock(flowcodec.now()))
    ids = frontend_ids(maps)
    rows.add(CLIENT, WEB, POD, frontend=ids[WEB], idle=10, age=70, flags=flowcodec.LOCAL)
    rows.add((CLIENT[0], 40001), WEB, POD, frontend=ids[WEB], source=NODE, sides=SILENT)
    rows.add(CLIENT, DNS, POD2, UDP, frontend=ids[DNS], sides=SILENT)
    rows.add(CLIENT6, WEB6, POD6, frontend=ids[WEB6], source=NODE6)
    rows.add((CLIENT[0], 5), POD, POD, flags=flowcodec.DIRECT)
    return state


def frontend_ids(maps: Maps) -> dict[End, int]:
    found: dict[End, int] = {}
    for end in (WEB, DNS, WEB6):
        family = 6 if ":" in end[0] else 4
        for key, value in maps[f"frontends{family}"].items():
            fields = abi.layout(f"struct frontend{family}_key").unpack(key)
            if fields[0] == parse_address(end[0]):
                found[end] = abi.layout("struct frontend").unpack(value)[1]
    return found


class TestCommandLine:
    def test_lines_look_like_conntracks(self, node: Path) -> None:
        result = call(node, "list")
        assert result.exit_code == 0
        lines = sorted(map(without_times, result.stdout.splitlines()))
        assert lines == [
            "tcp      6 T ESTABLISHED src=192.0.2.7 dst=10.244.1.1 sport=5 dport=8080 backend=10.244.1.1:8080"
            " [DIRECT] age=T",
            "tcp      6 T ESTABLISHED src=192.0.2.7 dst=10.96.0.1 sport=40000 dport=80 backend=10.244.1.1:8080"
            " [LOCAL] age=T service=shop/web:main",
            "tcp      6 T ESTABLISHED src=2001:db8::7 dst=fd00:96::1 sport=40000 dport=80 backend=[fd00:244::1]:8080"
            " src=fd00:244::1 dst=2001:db8::1 sport=8080 dport=61001 age=T service=shop/web6:main",
            "tcp      6 T SYN_SENT src=192.0.2.7 dst=10.96.0.1 sport=40001 dport=80 backend=10.244.1.1:8080"
            " src=10.244.1.1 dst=192.0.2.1 sport=8080 dport=61001 age=T service=shop/web:main",
            "udp      17 T src=192.0.2.7 dst=10.96.0.2 sport=40000 dport=53 [UNREPLIED] backend=10.244.1.2:8080 age=T"
            " service=shop/dns:main",
        ]
        [line] = call(node, "list", "--client", "192.0.2.7:40000", "--vip", "10.96.0.1").stdout.splitlines()
        assert 86380 <= int(line.split()[2]) <= 86390
        assert 70 <= int(line.split("age=")[1].split()[0]) <= 80

    @pytest.mark.parametrize(
        ("options", "count"),
        [
            ((), 5),
            (("--family", 6), 1),
            (("--protocol", "udp"), 1),
            (("--state", "established"), 3),
            (("--state", "SYN_SENT"), 1),
            (("--service", "shop/web"), 2),
            (("--service", "shop/web:main", "--state", "syn_sent"), 1),
            (("--service", "web"), 0),
            (("--vip", "10.96.0.0/24"), 3),
            (("--client", "2001:db8::/32"), 1),
            (("--backend", "[fd00:244::1]:8080"), 1),
            (("--backend", "10.244.1.1:8080"), 3),
        ],
    )
    def test_options_choose(self, node: Path, options: tuple[object, ...], count: int) -> None:
        assert len(call(node, "list", *options).stdout.splitlines()) == count
        assert len(json.loads(call(node, "list", *options, "-o", "json").stdout)) == count
        assert json.loads(call(node, "flush", *options, "-o", "json").stdout) == {"flushed": count}
        assert len(call(node, "list").stdout.splitlines()) == 5 - count

    def test_flush_says_how_many(self, node: Path) -> None:
        assert call(node, "flush", "--protocol", "udp").stdout == "1 flow flushed\n"
        assert call(node, "flush").stdout == "4 flows flushed\n"
        assert call(node, "flush").stdout == "0 flows flushed\n"

    def test_json(self, node: Path) -> None:
        [flow] = json.loads(call(node, "list", "--family", 6, "-o", "json").stdout)
        assert list(flow) == list(Flow.__struct_fields__)
        assert flow["client"] == "2001:db8::7"
        assert (flow["protocol"], flow["state"], flow["service"]) == ("tcp", "ESTABLISHED", "shop/web6:main")

    def test_times_are_those_of_the_agents_settings(self, node: Path) -> None:
        status.write(
            node,
            status.AgentStatus(
                pid=None, version="1", node="n", started="", settings={"conntrack_tcp_established": 100.0}
            ),
        )
        [line] = call(node, "list", "--service", "shop/web", "--state", "established").stdout.splitlines()
        assert 80 <= int(line.split()[2]) <= 90

    @pytest.mark.parametrize(
        ("options", "status", "message"),
        [
            (("--vip", "web"), 3, "web: expected an address or a range, or ADDRESS:PORT"),
            (("--state", "open"), 2, "Invalid value for '--state'"),
            (("--protocol", "icmp"), 2, "Invalid value for '--protocol'"),
        ],
    )
    @pytest.mark.parametrize("command", ["list", "flush"])
    def test_bad_use(self, tmp_path: Path, command: str, options: tuple[str, ...], status: int, message: str) -> None:
        result = call(tmp_path, command, *options)
        assert (result.exit_code, result.stdout) == (status, "")
        assert message in result.stderr

    @pytest.mark.parametrize("command", ["list", "flush"])
    def test_no_datapath(self, tmp_path: Path, command: str) -> None:
        result = call(tmp_path, command)
        assert result.exit_code == NotRunningError.exit_code
        assert result.stderr.startswith(f"bpfproxy: no datapath under {tmp_path}")

    def test_the_library(self, node: Path) -> None:
        assert len(api.list_flows(node)) == 5
        assert api.flush_flows(node, FlowFilter(family=6)) == 1


def without_times(line: str) -> str:
    return re.sub(r"age=\d+", "age=T", re.sub(r"^(\w+ +\d+) \d+", r"\1 T", line))
