"""Flows: states, times that wrap, names, and choosing among them. The datapath's own code is the judge of timeouts."""

from __future__ import annotations

import subprocess
from typing import Any

import cffi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfproxy.config import Settings
from bpfproxy.datapath import abi
from bpfproxy.datapath.files import c_tree
from bpfproxy.errors import InputError
from bpfproxy.model.address import ANY4, Address, parse_address
from bpfproxy.model.flow import ALL_FLOWS, Flow, FlowFilter, Place, State
from bpfproxy.model.frontend import Frontend, FrontendKind, Pool, ServicePortName
from bpfproxy.model.service import ObjectName, Protocol
from bpfproxy.proxiers.ebpf import collector, flowcodec
from bpfproxy.proxiers.ebpf.flowcodec import ANSWERED, FIN, RESET, SEEN, Names, elapsed, limits_of, state_of
from bpfproxy.proxiers.ebpf.packet import Timeouts, ticks
from bpfproxy.proxiers.ebpf.rows import FrontendRow, SetKey
from bpfproxy.proxiers.ebpf.snapshot import FrontendEntry

TIMEOUTS = Timeouts(
    tcp_syn=1,
    tcp_established=2,
    tcp_close_wait=3,
    tcp_time_wait=4,
    tcp_reset=5,
    udp=6,
    udp_stream=7,
    sctp=8,
)
HALF = 1 << 31

SHIM = """
#define PACKET_XDP 0
#define PACKET_FAMILY 4
#include "compat.h"
#undef CONFIG
#define CONFIG(field) (settings.field)
static struct config settings;
#include "conntrack.h"

void set(const void *from) { __builtin_memcpy(&settings, from, sizeof(settings)); }

__u32 timeout(__u8 client, __u8 backend, __u8 protocol)
{
	flow_t flow = {.client_side = client, .backend_side = backend};

	return flow_timeout(&flow, protocol);
}
"""


@pytest.fixture(scope="module")
def datapath(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """bpf/conntrack.h, compiled for this machine, under TIMEOUTS."""
    directory = tmp_path_factory.mktemp("shim")
    source, library = directory / "shim.c", directory / "shim.so"
    source.write_text(SHIM)
    flags = ["-O1", "-w", "-shared", "-fPIC", "-std=gnu11", "-I", str(c_tree())]
    subprocess.run(["clang", *flags, "-o", str(library), str(source)], check=True)
    ffi: Any = cffi.FFI()
    ffi.cdef("void set(const void *); uint32_t timeout(uint8_t, uint8_t, uint8_t);")
    opened = ffi.dlopen(str(library))
    config: Any = abi.ffi.new("struct config *")
    for name in Timeouts.__slots__:
        setattr(config, name, ticks(getattr(TIMEOUTS, name)))
    opened.set(ffi.from_buffer(abi.ffi.buffer(config)))
    return opened


def test_timeouts_are_the_datapaths(datapath: Any) -> None:
    limits = limits_of(TIMEOUTS)
    for protocol in Protocol:
        # Other protocols have no states: a side has been seen, or not.
        sides = range(16) if protocol is Protocol.TCP else (0, SEEN)
        for client in sides:
            for backend in sides:
                expected = datapath.timeout(client, backend, protocol)
                assert limits[protocol][client | backend << 4] == expected, (protocol, client, backend)


@pytest.mark.parametrize(
    ("client", "backend", "state"),
    [
        (SEEN, 0, State.SYN_SENT),
        (SEEN, SEEN, State.SYN_RECV),
        (SEEN | ANSWERED, SEEN, State.ESTABLISHED),
        (SEEN | ANSWERED, 0, State.ESTABLISHED),
        (SEEN | ANSWERED, SEEN | ANSWERED, State.ESTABLISHED),
        (SEEN | ANSWERED | FIN, SEEN | ANSWERED, State.FIN_WAIT),
        (SEEN | ANSWERED, SEEN | ANSWERED | FIN, State.CLOSE_WAIT),
        (SEEN | ANSWERED | FIN, SEEN | ANSWERED | FIN, State.TIME_WAIT),
        (SEEN | ANSWERED | FIN, SEEN | ANSWERED | FIN | RESET, State.CLOSE),
        (SEEN, SEEN | RESET, State.CLOSE),
    ],
)
def test_states_of_tcp(client: int, backend: int, state: State) -> None:
    assert state_of(Protocol.TCP, client, backend) is state


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.SCTP])
def test_states_of_others(protocol: Protocol) -> None:
    assert state_of(protocol, SEEN, 0) is State.UNREPLIED
    assert state_of(protocol, SEEN, SEEN) is State.REPLIED


class TestTimes:
    @given(st.integers(0, (1 << 32) - 1), st.integers(0, HALF - 1))
    def test_the_clock_wraps(self, then: int, passed: int) -> None:
        assert elapsed((then + passed) & 0xFFFFFFFF, then) == passed

    @given(st.integers(0, (1 << 32) - 1), st.integers(1, HALF))
    def test_what_was_noted_since_is_not_old(self, now: int, ahead: int) -> None:
        assert elapsed(now, (now + ahead) & 0xFFFFFFFF) == 0

    def test_every_timeout_can_be_told(self) -> None:
        longest = max(ticks(getattr(flowcodec.timeouts_of(longest_settings()), name)) for name in Timeouts.__slots__)
        assert longest < HALF

    @given(st.floats(0, 2))
    def test_the_fuller_the_sooner(self, fill: float) -> None:
        assert collector.SHORTEST <= collector.interval(fill) <= collector.LONGEST
        assert collector.interval(fill) >= collector.interval(fill + 0.1)


def longest_settings() -> Settings:
    longest: dict[str, Any] = dict.fromkeys((f"conntrack_{name}" for name in Timeouts.__slots__), 365 * 86400.0)
    return Settings(**longest)


def test_settings_are_the_timeouts() -> None:
    assert flowcodec.timeouts_of(Settings()) == Timeouts()
    assert flowcodec.timeouts_of(Settings(conntrack_udp=1.5)).udp == 1.5


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_bad_timeouts(value: float) -> None:
    with pytest.raises(InputError, match=r"--conntrack-tcp-close-wait .*: expected 0\.1 to"):
        Settings(conntrack_tcp_close_wait=value)


# ---- rows --------------------------------------------------------------------------------------------------------

ports = st.integers(0, 65535)
words = st.integers(0, (1 << 32) - 1)


@given(
    st.sampled_from([4, 16]).flatmap(lambda size: st.tuples(*[st.binary(min_size=size, max_size=size)] * 4)),
    st.tuples(ports, ports, ports, ports),
    st.sampled_from(Protocol),
    st.tuples(st.integers(0, 15), st.integers(0, 15)),
    words,
    st.integers(0, 1 << 30),
    st.booleans(),
)
def test_a_row_is_decoded(
    ends: tuple[bytes, ...],
    numbers: tuple[int, int, int, int],
    protocol: Protocol,
    sides: tuple[int, int],
    now: int,
    age: int,
    tuples: bool,
) -> None:
    client, vip, backend, source = ends
    family: Any = 4 if len(client) == 4 else 6
    client_port, vip_port, backend_port, source_port = numbers
    limits = limits_of(Timeouts())
    limit = limits[protocol][sides[0] | sides[1] << 4]
    idle = min(age, limit)
    row: Any = abi.ffi.new(f"struct flow{family} *")
    for name, address, port in (
        ("vip", vip, vip_port),
        ("backend", backend, backend_port),
        ("source", source, source_port),
    ):
        abi.ffi.buffer(getattr(row, name))[:] = address
        abi.ffi.buffer(getattr(row, f"{name}_port"))[:] = port.to_bytes(2)
    row.client_side, row.backend_side = sides
    row.created, row.seen = (now - age) & 0xFFFFFFFF, (now - idle) & 0xFFFFFFFF
    layouts = flowcodec.LAYOUTS[family]
    if tuples:
        key = layouts.tuple.pack(client, vip, client_port.to_bytes(2), vip_port.to_bytes(2), protocol, 0, 0)
    else:
        key = layouts.endpoint.pack(client, client_port.to_bytes(2), protocol, 0)
    values = bytes(abi.ffi.buffer(row))
    [flow] = flowcodec.decode(family, key, values, limits, Names({}), tuples=tuples, now=now)
    assert flow is not None
    assert (flow.client, flow.client_port) == (client, client_port)
    assert (flow.vip, flow.vip_port, flow.backend, flow.backend_port) == (vip, vip_port, backend, backend_port)
    assert (flow.source, flow.source_port) == (source, source_port)
    assert flow.protocol is protocol
    assert flow.age == pytest.approx(age * flowcodec.TICK)
    assert flow.expires == pytest.approx((limit - idle) * flowcodec.TICK)
    if age <= limit:
        row.seen = (now - limit - 1) & 0xFFFFFFFF
        values = bytes(abi.ffi.buffer(row))
        assert flowcodec.decode(family, key, values, limits, Names({}), tuples=tuples, now=now) == [None]


def entry(number: int, kind: FrontendKind, service: str, port: str) -> FrontendEntry:
    name = ServicePortName(ObjectName("ns", service), port, Protocol.TCP)
    return FrontendEntry(number, FrontendRow(SetKey(name, 4, Pool.CLUSTER), kind))


def test_names() -> None:
    vip = parse_address("10.96.0.1")
    names = Names(
        {
            Frontend(vip, 80, Protocol.TCP): entry(1, FrontendKind.CLUSTER_IP, "web", "http"),
            Frontend(ANY4, 30080, Protocol.TCP): entry(2, FrontendKind.NODE_PORT, "web", ""),
        }
    )
    assert names.find(1, vip, 80) == "ns/web:http"
    assert names.find(2, parse_address("192.0.2.1"), 30080) == "ns/web"
    # An id that was given to another frontend says nothing of an old flow.
    assert [names.find(1, vip, 81), names.find(1, parse_address("10.96.0.2"), 80), names.find(3, vip, 80)] == [""] * 3


# ---- choosing ----------------------------------------------------------------------------------------------------


def flow(client: str = "10.0.0.1", vip: str = "10.96.0.1", service: str = "ns/web:http", **more: Any) -> Flow:
    fields: dict[str, Any] = {
        "family": 6 if ":" in vip else 4,
        "protocol": Protocol.TCP,
        "state": State.ESTABLISHED,
        "client": parse_address(client),
        "client_port": 1234,
        "vip": parse_address(vip),
        "vip_port": 80,
        "backend": Address(b"\x0a\xf4\0\1"),
        "backend_port": 8080,
        "source": parse_address(client),
        "source_port": 1234,
        "service": service,
        "age": 1.0,
        "expires": 2.0,
        "direct": False,
        "local": True,
        "orphan": False,
    }
    return Flow(**(fields | more))


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (ALL_FLOWS, True),
        (FlowFilter(family=4, protocol=Protocol.TCP, state=State.ESTABLISHED, service="ns/web"), True),
        (FlowFilter(family=6), False),
        (FlowFilter(protocol=Protocol.UDP), False),
        (FlowFilter(state=State.SYN_SENT), False),
        (FlowFilter(service="ns/web:http"), True),
        (FlowFilter(service="ns/web:https"), False),
        (FlowFilter(service="ns/we"), False),
        (FlowFilter(client=Place.parse("10.0.0.0/24")), True),
        (FlowFilter(client=Place.parse("10.0.0.1:1234")), True),
        (FlowFilter(client=Place.parse("10.0.0.1:1235")), False),
        (FlowFilter(vip=Place.parse("fd00::/8")), False),
        (FlowFilter(vip=Place.parse("10.96.0.1:80"), backend=Place.parse("10.244.0.1:8080")), True),
        (FlowFilter(vip=Place.parse("10.96.0.1:80"), backend=Place.parse("10.244.0.2")), False),
    ],
)
def test_filter(wanted: FlowFilter, chosen: bool) -> None:
    assert wanted(flow()) is chosen


def test_sixes() -> None:
    found = flow(client="fd00::5", vip="fd00::1")
    assert Place.parse("[fd00::1]:80").holds(found.vip, found.vip_port)
    assert not Place.parse("[fd00::1]:81").holds(found.vip, found.vip_port)
    assert FlowFilter(client=Place.parse("fd00::/64"))(found)


@pytest.mark.parametrize(
    "text", ["", "web", "10.0.0", "10.0.0.1:", "10.0.0.1:http", "10.0.0.1:65536", "[fd00::1", "::x"]
)
def test_no_place(text: str) -> None:
    with pytest.raises(InputError, match="expected an address or a range"):
        Place.parse(text)


def test_a_translated_source() -> None:
    assert not flow().source_translated
    assert flow(source_port=61001).source_translated
    assert flow(source=parse_address("192.0.2.1")).source_translated
