"""Rows of flows → `Flow`, and what follows from a row: its state, and whether its time is over. Pure.

The datapath decides the same from the same fields (flow_timeout and flow_expired in bpf/conntrack.h): a row whose
time is over is as good as none to it, whether it is still there or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from bpfproxy.config import Settings
from bpfproxy.datapath import abi
from bpfproxy.model.address import Address, Family
from bpfproxy.model.flow import Flow, State
from bpfproxy.model.frontend import Frontend, FrontendKind
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.ebpf.packet import Timeouts, ticks
from bpfproxy.proxiers.ebpf.snapshot import FrontendEntry

Buffer = bytes | memoryview
Ticks = Callable[[], int]

SEEN, ANSWERED, FIN, RESET = (abi.constant(f"SIDE_{name}") for name in ("SEEN", "ANSWERED", "FIN", "RESET"))
DIRECT, MORE, REPLY, LOCAL = (abi.constant(f"FLOW_{name}") for name in ("DIRECT", "MORE", "REPLY", "LOCAL"))
FORWARD: Final = abi.constant("DIRECTION_FORWARD")

_TICK_SHIFT: Final = abi.constant("TICK_SHIFT")
TICK: Final = (1 << _TICK_SHIFT) / 1e9
"""Seconds."""
_MASK: Final = (1 << 32) - 1
_HALF: Final = 1 << 31


class Layouts:
    """How the rows of a family are packed; parts of them for those who need no more."""

    def __init__(self, family: Family) -> None:
        self.family = family
        row, endpoint, tuple_ = f"struct flow{family}", f"struct endpoint{family}_key", f"struct tuple{family}_key"
        self.endpoint = abi.layout(endpoint)
        self.tuple = abi.layout(tuple_)
        self.row = abi.layout(row)
        self.endpoint_protocol = abi.layout(endpoint, "protocol")
        self.tuple_protocol = abi.layout(tuple_, "protocol")
        self.tuple_client = abi.layout(tuple_, "source", "source_port", "protocol", "direction")
        self.life = abi.layout(row, "client_side", "backend_side", "flags", "seen")
        self.target = abi.layout(row, "backend_id", "backend_generation")
        self.seen = abi.ffi.offsetof(row, "seen")
        self.identity = abi.layout(row, "vip", "backend", "vip_port", "backend_port", "created")
        """Two rows under one key are of the same flow if these are equal."""


LAYOUTS: Final[Mapping[Family, Layouts]] = {4: Layouts(4), 6: Layouts(6)}


# ---- times -------------------------------------------------------------------------------------------------------


def now() -> int:
    """The datapath's clock: ticks that wrap at 2^32."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> _TICK_SHIFT & _MASK


def elapsed(now: int, then: int) -> int:
    """Ticks from `then` to `now`, over a wrap of the clock; 0 if `then` is later (a program noted it since)."""
    passed = (now - then) & _MASK
    return passed if passed < _HALF else 0


def timeouts_of(settings: Settings) -> Timeouts:
    """The idle times that are set."""
    return Timeouts(**{name: getattr(settings, f"conntrack_{name}") for name in Timeouts.__slots__})


# ---- states ------------------------------------------------------------------------------------------------------


def state_of(protocol: int, client: int, backend: int) -> State:
    """The state that the flags of both sides amount to."""
    if protocol != Protocol.TCP:
        return State.REPLIED if backend else State.UNREPLIED
    both = client | backend
    if both & RESET:
        return State.CLOSE
    if client & backend & FIN:
        return State.TIME_WAIT
    if both & FIN:
        return State.FIN_WAIT if client & FIN else State.CLOSE_WAIT
    if client & ANSWERED or backend & ANSWERED:
        return State.ESTABLISHED
    return State.SYN_RECV if backend else State.SYN_SENT


_TCP_TIMEOUTS: Final = {
    State.SYN_SENT: "tcp_syn",
    State.SYN_RECV: "tcp_established",
    State.ESTABLISHED: "tcp_established",
    State.FIN_WAIT: "tcp_close_wait",
    State.CLOSE_WAIT: "tcp_close_wait",
    State.TIME_WAIT: "tcp_time_wait",
    State.CLOSE: "tcp_reset",
}
_UDP_TIMEOUTS: Final = {State.UNREPLIED: "udp", State.REPLIED: "udp_stream"}


def timeout_of(protocol: int, state: State) -> str:
    """The name, in `Timeouts`, of the idle time after which a flow is forgotten."""
    if protocol == Protocol.TCP:
        return _TCP_TIMEOUTS[state]
    return _UDP_TIMEOUTS[state] if protocol == Protocol.UDP else "sctp"


def _by_sides(result: Callable[[int, State], Any]) -> list[list[Any]]:
    """`result(protocol, state)` at [protocol][client_side | backend_side << 4]."""

    def row(protocol: int) -> list[Any]:
        return [result(protocol, state_of(protocol, sides & 15, sides >> 4)) for sides in range(256)]

    rows = [row(Protocol.SCTP)] * 256
    rows[Protocol.TCP], rows[Protocol.UDP] = row(Protocol.TCP), row(Protocol.UDP)
    return rows


STATES: Final[list[list[State]]] = _by_sides(lambda protocol, state: state)
"""By protocol, then by client_side | backend_side << 4."""


def limits_of(timeouts: Timeouts) -> list[list[int]]:
    """Idle ticks after which a row's time is over, by protocol and sides as in `STATES`."""
    return _by_sides(lambda protocol, state: ticks(getattr(timeouts, timeout_of(protocol, state))))


# ---- rows --------------------------------------------------------------------------------------------------------


class _Name(Struct, frozen=True, gc=False):
    service: str
    address: Address | None
    port: int


class Names:
    """Services by the ids of their frontends."""

    def __init__(self, frontends: Mapping[Frontend, FrontendEntry]) -> None:
        self._names: dict[int, _Name] = {}
        for frontend, entry in frontends.items():
            name = entry.row.set.service_port
            service = f"{name.service}:{name.port}" if name.port else str(name.service)
            address = None if entry.row.kind is FrontendKind.NODE_PORT else frontend.address
            self._names[entry.id] = _Name(service, address, frontend.port)

    def find(self, frontend_id: int, vip: bytes, port: int) -> str:
        """The Service of a flow, empty if the frontend is gone: its id may be another's by now."""
        name = self._names.get(frontend_id)
        if name is None or name.port != port or (name.address is not None and name.address != vip):
            return ""
        return name.service


_PROTOCOLS: Final = {protocol.value: protocol for protocol in Protocol}


def decode(
    family: Family, keys: Buffer, values: Buffer, limits: list[list[int]], names: Names, *, tuples: bool, now: int
) -> list[Flow | None]:
    """The flow of each row of `flows` or `tuples`, None where its time is over. Rows of replies are `orphan`, which
    whoever finds the other row of the flow has to correct by leaving them out."""
    layouts = LAYOUTS[family]
    number, find, half, mask = int.from_bytes, names.find, _HALF, _MASK
    rows = layouts.row.iter_unpack(values)
    flows: list[Flow | None] = []
    # Of each key: the client, its port, the protocol, and where it is a tuple, its destination.
    ends: Any = (
        (
            (source, source_port, protocol, to, port)
            for source, to, source_port, port, protocol, _, _ in layouts.tuple.iter_unpack(keys)
        )
        if tuples
        else ((address, port, protocol, b"", b"") for address, port, protocol, _ in layouts.endpoint.iter_unpack(keys))
    )
    for (client, client_port, protocol, to, to_port), row in zip(ends, rows, strict=True):
        vip, backend, source, vip_port, backend_port, source_port, cs, bs, flags, created, seen, frontend, *_ = row
        sides = cs & 15 | (bs & 15) << 4
        limit = limits[protocol][sides]
        idle = (now - seen) & mask
        if idle >= half:
            idle = 0
        if idle > limit:
            flows.append(None)
            continue
        orphan = False
        if flags & REPLY:
            # Here the key is the reply's own tuple, and `source` the client.
            orphan = True
            client, client_port, source, source_port = source, source_port, to, to_port
        vip_number = number(vip_port)
        flows.append(
            Flow(
                family,
                _PROTOCOLS[protocol],
                STATES[protocol][sides],
                client,
                number(client_port),
                vip,
                vip_number,
                backend,
                number(backend_port),
                source,
                number(source_port),
                find(frontend, vip, vip_number) if frontend else "",
                elapsed(now, created) * TICK,
                (limit - idle) * TICK,
                bool(flags & DIRECT),
                bool(flags & LOCAL),
                orphan,
            )
        )
    return flows
