"""Removes rows of flows whose time is over, a little at a time.

The datapath takes no notice of such rows, so nothing depends on how soon they go; but the maps make room by dropping
what was used least recently, which may be a flow that lives and is quiet. So the fuller a map is, the more often it is
swept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from bpfproxy.datapath.maps import Map
from bpfproxy.events import emit
from bpfproxy.proxiers.base import Tended
from bpfproxy.proxiers.ebpf import flowcodec
from bpfproxy.proxiers.ebpf.conntrack import Conntrack
from bpfproxy.proxiers.ebpf.flowcodec import Buffer, Layouts

log = logging.getLogger(__name__)

ROWS_PER_RUN: Final = 65536
REMOVED_PER_RUN: Final = 8192
"""So a run takes some 0.1 s of the thread that also writes the service tables."""
PAUSE: Final = 0.1
"""Between the runs of a sweep, seconds."""
LONGEST: Final = 30.0
SHORTEST: Final = 2.0
"""Between two sweeps, seconds."""
NEARLY_FULL: Final = 0.9
RELIEVED: Final = 0.8
"""Share of a map's rows: at the one it is told, below the other it can be told again."""


def interval(fill: float) -> float:
    """Seconds from one sweep to the next, by the share of rows in use."""
    return max(SHORTEST, LONGEST * (1 - min(fill, 1.0)) ** 2)


class Collector:
    """Sweeps the maps of flows. `run` does a part of a sweep."""

    def __init__(self, conntrack: Conntrack) -> None:
        self._conntrack = conntrack
        self._sweep: Iterator[tuple[Map, int, int]] = iter(())
        self._under_way = False
        self._rows: dict[str, int] = {}
        """Of the sweep that is under way, then of the last one: rows by map, without those that were removed."""
        self._told: set[str] = set()

    def run(self) -> Tended:
        """Go on with the sweep, or begin one. Returns what was done, and when to call again."""
        if not self._conntrack.tables:
            return Tended()
        if not self._under_way:
            self._rows = {}
            self._sweep = self._steps()
            self._under_way = True
        rows = removed = 0
        while rows < ROWS_PER_RUN and removed < REMOVED_PER_RUN:
            try:
                map_, found, gone = next(self._sweep)
            except StopIteration:
                self._under_way = False
                return self._finish(removed)
            except BaseException:
                self._under_way = False  # the next run begins another
                raise
            rows += found
            removed += gone
            self._rows[map_.name] = self._rows.get(map_.name, 0) + found - gone
        return Tended(delay=PAUSE, expired_flows=removed)

    def _steps(self) -> Iterator[tuple[Map, int, int]]:
        for table in self._conntrack.tables:
            yield from self._conntrack.prune(table, Expired(self._conntrack))

    def _finish(self, removed: int) -> Tended:
        highest, full = 0.0, []
        for table in self._conntrack.tables:
            for map_ in (table.flows, table.tuples):
                rows = self._rows.get(map_.name, 0)
                fill = rows / map_.max_entries
                highest = max(highest, fill)
                if fill < RELIEVED:
                    self._told.discard(map_.name)
                elif fill >= NEARLY_FULL and map_.name not in self._told:
                    self._told.add(map_.name)
                    full.append(map_.name)
                    fields = {"map": map_.name, "rows": rows, "at_most": map_.max_entries, "setting": "--max-flows"}
                    emit(log, logging.WARNING, "nearly_full", **fields)
        return Tended(delay=interval(highest), expired_flows=removed, nearly_full=tuple(full))


class Expired:
    """Rows whose time is over. One for each family and sweep."""

    def __init__(self, conntrack: Conntrack) -> None:
        self._limits = conntrack.limits
        self._clock = conntrack.clock
        self._begin = conntrack.clock()

    def rows(self, layouts: Layouts, keys: Buffer, values: Buffer, *, tuples: bool) -> set[int]:
        """See `Choice.rows`."""
        protocols = (layouts.tuple_protocol if tuples else layouts.endpoint_protocol).iter_unpack(keys)
        now, begin, limits, elapsed = self._clock(), self._begin, self._limits, flowcodec.elapsed
        chosen: set[int] = set()
        lives = layouts.life.iter_unpack(values)
        for at, ((protocol,), (client, backend, flags, seen)) in enumerate(zip(protocols, lives, strict=True)):
            # A further flow begins only beside a first one whose time is not over. So where the first one's was over
            # when the further ones were looked for, there can be no other since.
            moment = begin if flags & flowcodec.MORE else now
            if elapsed(moment, seen) > limits[protocol][client & 15 | (backend & 15) << 4]:
                chosen.add(at)
        return chosen

    def still(self, layouts: Layouts, key: bytes, seen: Buffer, now: Buffer) -> bool:
        """See `Choice.still`."""
        client, backend, _, noted = layouts.life.unpack(now)
        tuples = len(key) == layouts.tuple.size
        (protocol,) = (layouts.tuple_protocol if tuples else layouts.endpoint_protocol).unpack(key)
        limit: int = self._limits[protocol][client & 15 | (backend & 15) << 4]
        return flowcodec.elapsed(self._clock(), noted) > limit
