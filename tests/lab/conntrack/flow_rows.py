"""Rows of flows as the programs would write them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bpfproxy.datapath import abi
from bpfproxy.datapath.maps import Map
from bpfproxy.model.address import Address, parse_address
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.ebpf.flowcodec import FORWARD, MORE, REPLY, TICK
from bpfproxy.proxiers.ebpf.snapshot import Maps

End = tuple[str, int]
SEEN, ANSWERED, FIN, RESET = 1, 2, 4, 8
SOURCE, PAIRED = abi.constant("FLOW_SOURCE"), abi.constant("FLOW_PAIRED")
REPLY_DIRECTION = abi.constant("DIRECTION_REPLY")


class Clock:
    """Ticks that stand still until they are set."""

    def __init__(self, start: int) -> None:
        self.ticks = start

    def __call__(self) -> int:
        return self.ticks & 0xFFFFFFFF

    def pass_(self, seconds: float) -> None:
        self.ticks += round(seconds / TICK)


class Writer:
    """Writes flows at a clock's time."""

    def __init__(self, maps: Maps, clock: Clock) -> None:
        self._maps = maps
        self._clock = clock

    def add(
        self,
        client: End,
        vip: End,
        backend: End,
        protocol: Protocol = Protocol.TCP,
        *,
        source: End | None = None,
        sides: tuple[int, int] = (SEEN | ANSWERED, SEEN | ANSWERED),
        idle: float = 0,
        age: float = 0,
        further: bool = False,
        flags: int = 0,
        frontend: int = 0,
        target: tuple[int, int] = (0, 0),
        forward: bool = True,
        reply: bool = True,
    ) -> None:
        """A flow: the row of the client's packets, and if the source is translated or the flow is `further`, that of
        the replies. `target`: backend id and generation."""
        family = 6 if ":" in client[0] else 4
        paired = further or source is not None
        flags |= (PAIRED if paired else 0) | (SOURCE if source else 0)
        row = self._row(family, vip, backend, source or client, flags, sides, idle, max(age, idle), frontend, target)
        if forward and further:
            self._map("tuples", family).update(self._tuple(family, client, vip, protocol, FORWARD), row)
            key = self._endpoint(family, client, protocol)
            first: Any = abi.ffi.from_buffer(f"struct flow{family} *", bytearray(self._first(family, key)))
            first.flags |= MORE
            self._map("flows", family).update(key, bytes(abi.ffi.buffer(first)))
        elif forward:
            self._map("flows", family).update(self._endpoint(family, client, protocol), row)
        if reply and paired:
            row = self._row(family, vip, backend, client, flags | REPLY, sides, idle, max(age, idle), frontend, target)
            key = self._tuple(family, backend, source or client, protocol, REPLY_DIRECTION)
            self._map("tuples", family).update(key, row)

    def refresh(self, client: End, protocol: Protocol = Protocol.TCP, **fields: int) -> None:
        """Write fields of the first row of a client's port, `seen` now among them."""
        family = 6 if ":" in client[0] else 4
        key = self._endpoint(family, client, protocol)
        row: Any = abi.ffi.from_buffer(f"struct flow{family} *", bytearray(self._first(family, key)))
        for name, value in {"seen": self._clock(), **fields}.items():
            setattr(row, name, value)
        self._map("flows", family).update(key, bytes(abi.ffi.buffer(row)))

    def rows(self, *names: str) -> dict[str, int]:
        """How many rows maps have."""
        return {name: sum(count for _, _, count in self._maps[name].batches()) for name in names}

    def _first(self, family: int, key: bytes) -> bytes:
        row = self._map("flows", family).lookup(key)
        assert row is not None
        return row

    def _map(self, name: str, family: int) -> Map:
        return self._maps[f"{name}{family}"]

    def _row(
        self,
        family: int,
        vip: End,
        backend: End,
        source: End,
        flags: int,
        sides: tuple[int, int],
        idle: float,
        age: float,
        frontend: int,
        target: tuple[int, int],
    ) -> bytes:
        row: Any = abi.ffi.new(f"struct flow{family} *")
        for name, end in (("vip", vip), ("backend", backend), ("source", source)):
            abi.ffi.buffer(getattr(row, name))[:] = parse_address(end[0])
            abi.ffi.buffer(getattr(row, f"{name}_port"))[:] = end[1].to_bytes(2)
        row.flags, row.frontend, (row.backend_id, row.backend_generation) = flags, frontend, target
        row.client_side, row.backend_side = sides
        now = self._clock.ticks
        row.seen, row.created = (now - round(idle / TICK)) & 0xFFFFFFFF, (now - round(age / TICK)) & 0xFFFFFFFF
        return bytes(abi.ffi.buffer(row))

    @staticmethod
    def _endpoint(family: int, end: End, protocol: Protocol) -> bytes:
        return abi.layout(f"struct endpoint{family}_key").pack(*_packed(end), protocol, 0)

    @staticmethod
    def _tuple(family: int, source: End, destination: End, protocol: Protocol, direction: int) -> bytes:
        (from_, from_port), (to, to_port) = _packed(source), _packed(destination)
        layout = abi.layout(f"struct tuple{family}_key")
        return layout.pack(from_, to, from_port, to_port, protocol, direction, 0)


def _packed(end: End) -> tuple[Address, bytes]:
    return parse_address(end[0]), end[1].to_bytes(2)


def fill(maps: Maps, clock: Clock, count: int, *, idle: Iterable[float]) -> None:
    """`count` TCP flows of as many clients, v4, in one go; their idle times from `idle` in turn."""
    writer = Writer(maps, clock)
    times = list(idle)
    kinds = [
        writer._row(4, ("10.96.0.1", 80), ("10.0.0.1", 8080), ("10.1.0.1", 1), 0, (3, 3), t, t, 1, (1, 1))
        for t in times
    ]
    layout = abi.layout("struct endpoint4_key")
    keys = b"".join(layout.pack(number.to_bytes(4), b"\1\1", Protocol.TCP, 0) for number in range(1, count + 1))
    values = b"".join(kinds[number % len(kinds)] for number in range(count))
    done = maps["flows4"].update_batch(keys, values, count)
    assert done == (count, None)
