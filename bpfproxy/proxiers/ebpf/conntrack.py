"""Conntrack from user space: reading flows, and removing them.

A client's port has its first flow in `flows`; further ones of the same port, and the replies of flows that have rows
of their own for them, are in `tuples` (bpf/abi.h). Programs write these maps at the same time, so:

- A row that is to go is deleted and looked at in one step (`Map.take`). If it turns out that it was given to another
  flow, or that its time is not over after all, it is put back unless a program has been faster. A packet that comes in
  the microseconds between finds no flow: a SYN or a datagram gets a new one, which then stands; a later TCP segment
  goes to the backend that Maglev names, which is the same one, or passes to the stack, to be sent again.
- The first row leads to the further ones: as long as there are any it stays, with its time set to be over.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator
from typing import Final, Protocol

from bpfproxy.datapath.maps import EXIST, NOEXIST, Map
from bpfproxy.model.address import Family
from bpfproxy.model.flow import ALL_FLOWS, Flow, FlowFilter
from bpfproxy.model.service import Protocol as IPProtocol
from bpfproxy.proxiers.ebpf import codec, flowcodec
from bpfproxy.proxiers.ebpf.flowcodec import LAYOUTS, Buffer, Layouts, Names, Ticks
from bpfproxy.proxiers.ebpf.packet import Timeouts
from bpfproxy.proxiers.ebpf.snapshot import Maps

CHUNK: Final = 4096
"""Rows that are read at once: few, so that little time passes between looking at a row and deleting it."""
_OVER: Final = 64
"""Ticks by which a row's time is set to be over: the programs' clock may be a tick behind ours."""
_FAMILIES: Final[tuple[Family, ...]] = (4, 6)


class Choice(Protocol):
    """Which rows are to go."""

    def rows(self, layouts: Layouts, keys: Buffer, values: Buffer, *, tuples: bool) -> Collection[int]:
        """Indices of rows in a batch."""
        ...

    def still(self, layouts: Layouts, key: bytes, seen: Buffer, now: Buffer) -> bool:
        """Whether a row that was chosen when it was `seen` may go as it is `now`."""
        ...


class Table:
    """The two maps of a family."""

    def __init__(self, family: Family, flows: Map, tuples: Map) -> None:
        self.layouts = LAYOUTS[family]
        self.flows = flows
        self.tuples = tuples


class Conntrack:
    """The flows of both families. A datapath without a packet level has none."""

    def __init__(self, maps: Maps, timeouts: Timeouts, clock: Ticks = flowcodec.now) -> None:
        self.limits = flowcodec.limits_of(timeouts)
        self.clock = clock
        self.tables = [
            Table(family, maps[f"flows{family}"], maps[f"tuples{family}"])
            for family in _FAMILIES
            if f"flows{family}" in maps
        ]

    # ---- reading -------------------------------------------------------------------------------------------------

    def read(self, names: Names, wanted: FlowFilter = ALL_FLOWS) -> Iterator[Flow]:
        """The flows that are `wanted`, in no order."""
        for table in self.tables:
            if wanted.family in (None, table.layouts.family):
                yield from filter(wanted, self._read(table, names))

    def _read(self, table: Table, names: Names) -> Iterator[Flow]:
        # A program writes the row of replies first: read first here, it never seems to be an orphan because of that.
        replies: dict[_Identity, Flow] = {}
        found: set[_Identity] = set()
        for flow in self._decoded(table, names, tuples=True):
            if flow.orphan:
                replies[_identity(flow)] = flow
            else:
                found.add(_identity(flow))
                yield flow
        for flow in self._decoded(table, names, tuples=False):
            if replies:
                found.add(_identity(flow))
            yield flow
        yield from (flow for identity, flow in replies.items() if identity not in found)

    def _decoded(self, table: Table, names: Names, *, tuples: bool) -> Iterator[Flow]:
        map_ = table.tuples if tuples else table.flows
        for keys, values, _ in map_.batches(CHUNK):
            now = self.clock()
            family = table.layouts.family
            yield from filter(None, flowcodec.decode(family, keys, values, self.limits, names, tuples=tuples, now=now))

    def is_empty(self) -> bool:
        """Whether there is no flow. Takes no longer the more there are."""
        return not any(count for table in self.tables for _, _, count in itertools.islice(table.flows.batches(1), 1))

    # ---- removing ------------------------------------------------------------------------------------------------

    def flush(self, names: Names, wanted: FlowFilter = ALL_FLOWS) -> int:
        """Remove the flows that are `wanted`; returns how many there were."""
        choice = _Wanted(self, names, wanted)
        for table in self.tables:
            if wanted.family in (None, table.layouts.family):
                for _ in self.prune(table, choice):
                    pass
        return len(choice.flows)

    def forget(self, gone: Collection[tuple[int, int]]) -> int:
        """Remove the UDP flows that lead to backends by (id, generation) (rule 16); returns the number of rows."""
        choice = _LeadsTo(frozenset(gone))
        return sum(removed for table in self.tables for _, _, removed in self.prune(table, choice))

    def prune(self, table: Table, choice: Choice) -> Iterator[tuple[Map, int, int]]:
        """Remove rows. Steps from batch to batch: (map, rows read, rows removed)."""
        layouts = table.layouts
        living: set[bytes] = set()
        """Clients, as keys of `flows`, that keep a further flow."""
        size = table.tuples.shape.key_size
        for keys, values, count in table.tuples.batches(CHUNK):
            chosen = choice.rows(layouts, keys, values, tuples=True)
            for at, (source, port, protocol, direction) in enumerate(layouts.tuple_client.iter_unpack(keys)):
                if direction == flowcodec.FORWARD and at not in chosen:
                    living.add(layouts.endpoint.pack(source, port, protocol, 0))
            removed = sum(
                self._remove(table, table.tuples, bytes(keys[at * size : (at + 1) * size]), values, at, choice)
                for at in chosen
            )
            yield table.tuples, count, removed
        size = table.flows.shape.key_size
        for keys, values, count in table.flows.batches(CHUNK):
            removed = 0
            for at in choice.rows(layouts, keys, values, tuples=False):
                key = bytes(keys[at * size : (at + 1) * size])
                if key in living:
                    self._end(table, key, values, at, choice)
                else:
                    removed += self._remove(table, table.flows, key, values, at, choice)
            yield table.flows, count, removed

    def _remove(self, table: Table, map_: Map, key: bytes, values: memoryview, at: int, choice: Choice) -> bool:
        size = map_.row_size
        found = map_.take(key)
        if found is None:
            return False
        if choice.still(table.layouts, key, values[at * size : (at + 1) * size], found):
            return True
        with contextlib.suppress(FileExistsError):
            map_.update(key, found, NOEXIST)
        return False

    def _end(self, table: Table, key: bytes, values: memoryview, at: int, choice: Choice) -> None:
        """Set a row's time to be over. What a program writes meanwhile is lost, but the row was to go anyway."""
        size = table.flows.row_size
        found = table.flows.lookup(key)
        if found is None or not choice.still(table.layouts, key, values[at * size : (at + 1) * size], found):
            return
        client, backend, _, seen = table.layouts.life.unpack(found)
        (protocol,) = table.layouts.endpoint_protocol.unpack(key)
        limit = self.limits[protocol][client & 15 | (backend & 15) << 4]
        now = self.clock()
        if flowcodec.elapsed(now, seen) <= limit:
            over = codec.U32.pack(now - limit - _OVER & 0xFFFFFFFF)
            at_seen = table.layouts.seen
            with contextlib.suppress(FileNotFoundError):
                table.flows.update(key, found[:at_seen] + over + found[at_seen + 4 :], EXIST)


_Identity = tuple[bytes, int, bytes, int, int]


def _identity(flow: Flow) -> _Identity:
    return flow.client, flow.client_port, flow.vip, flow.vip_port, flow.protocol


class _Wanted:
    """Rows of flows that a person chose."""

    def __init__(self, conntrack: Conntrack, names: Names, wanted: FlowFilter) -> None:
        self._conntrack = conntrack
        self._names = names
        self._wanted = wanted
        self.flows: set[_Identity] = set()
        """All that were chosen."""

    def rows(self, layouts: Layouts, keys: Buffer, values: Buffer, *, tuples: bool) -> list[int]:
        limits, now, wanted = self._conntrack.limits, self._conntrack.clock(), self._wanted
        chosen: list[int] = []
        flows = flowcodec.decode(layouts.family, keys, values, limits, self._names, tuples=tuples, now=now)
        for at, flow in enumerate(flows):
            if flow is not None and wanted(flow):
                chosen.append(at)
                self.flows.add(_identity(flow))
        return chosen

    def still(self, layouts: Layouts, key: bytes, seen: Buffer, now: Buffer) -> bool:
        return layouts.identity.unpack(seen) == layouts.identity.unpack(now)


class _LeadsTo:
    """Rows of UDP flows to some backends, by (id, generation)."""

    def __init__(self, backends: frozenset[tuple[int, int]]) -> None:
        self._backends = backends

    def rows(self, layouts: Layouts, keys: Buffer, values: Buffer, *, tuples: bool) -> list[int]:
        protocols = (layouts.tuple_protocol if tuples else layouts.endpoint_protocol).iter_unpack(keys)
        pairs = zip(protocols, layouts.target.iter_unpack(values), strict=True)
        gone = self._backends
        return [at for at, ((protocol,), target) in enumerate(pairs) if target in gone and protocol == IPProtocol.UDP]

    def still(self, layouts: Layouts, key: bytes, seen: Buffer, now: Buffer) -> bool:
        return layouts.target.unpack(now) in self._backends
