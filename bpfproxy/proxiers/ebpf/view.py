"""A running node as its maps show it: what `service`, `backend` and `stats` print. Reads, never writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from bpfproxy.datapath import abi
from bpfproxy.model.address import format_address
from bpfproxy.model.frontend import Frontend, FrontendKind, Scope
from bpfproxy.proxiers.ebpf import codec, snapshot
from bpfproxy.proxiers.ebpf.snapshot import Maps

_ORIGINS = [origin.name.lower() for origin in abi.enum_of("origin", "ORIGIN_")]
_HOOKS = [hook.name.lower() for hook in abi.enum_of("hook", "HOOK_")]
_REASONS = [reason.name.lower() for reason in abi.enum_of("reason", "REASON_")]
_DIRECTIONS = [direction.name.lower() for direction in abi.enum_of("direction", "DIRECTION_")]

DROPS: Final = (
    "no_local_backend",
    "source_range",
    "error_limited",
    "snat_exhausted",
    "no_source",
    "no_route",
    "no_neighbour",
    "no_flow",
)
"""Reasons with which a packet is dropped and nobody told; at socket level a call fails."""
REFUSALS: Final = ("no_backend", "too_big", "ttl", "port_taken")
"""Reasons with which the client is told: by an ICMP error if the rate allows one, or by the error of its call."""

_COUNTED: Final = ("flows4", "tuples4", "flows6", "tuples6", "affinities", "udp_sessions", "udp_sockets")
"""Maps of state whose rows are counted by reading them."""
_ROWS_AT_ONCE: Final = 4096
_SPARSE: Final = 16
"""Reading a row on its own costs as much as so many in bulk."""


class BackendView(Struct, frozen=True):
    """One backend. `connections` counts those that were given to it since it got its id."""

    id: int
    service: str
    port_name: str
    """Of the Service: a pod behind two of them is two backends."""
    address: str
    port: int
    protocol: str
    local: bool
    sets: int
    connections: int
    packets: dict[str, int]
    """By direction: `forward`, `reply`. Those of the packet level."""
    bytes: dict[str, int]
    """The same; from the IP header on."""


class FrontendView(Struct, frozen=True):
    """One frontend and the set behind it. `address` of a NodePort is `*`: all in `node_addresses`."""

    service: str
    port_name: str
    kind: str
    address: str
    port: int
    protocol: str
    family: int
    scope: str
    pool: str
    scheduler: str
    backends: list[str]
    draining: list[str]
    on_empty: str
    affinity_timeout: int
    masquerade: str
    connections: dict[str, int]
    """By origin: the kind of hook that translated (`connect`, `sendmsg`, `packet`)."""
    packets: dict[str, int]
    """By direction: `forward`, `reply`. Those of the packet level."""
    bytes: dict[str, int]
    """The same; from the IP header on."""


class NodeView(Struct, frozen=True):
    """Counters and occupancy of the whole node."""

    metrics: dict[str, dict[str, int]]
    """hook → reason → count, zeros left out."""
    drops: dict[str, int]
    """reason → count, over all hooks, zeros left out: the client was told nothing."""
    refusals: dict[str, int]
    """The same where the client was told."""
    connections: dict[str, int]
    """By origin; those of frontends that are there."""
    packets: dict[str, int]
    bytes: dict[str, int]
    frontends: int
    sets: int
    backends: int
    node_addresses: list[str]
    map_sizes: dict[str, int]
    """Rows at most, by map."""
    map_rows: dict[str, int]
    """Rows in use, by map, where they are known: service tables and flows."""


class View:
    """Reads the maps once, at construction; counters are read when asked for. Leaving it as a context manager closes
    the maps."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._snapshot = snapshot.take(maps)

    def close(self) -> None:
        """Close the maps."""
        for map_ in self._maps.values():
            map_.close()

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def frontends(self) -> list[FrontendView]:
        """All frontends, by service, kind and address."""
        entries = self._snapshot.frontends
        counters = self._stats("frontend_stats", [entry.id for entry in entries.values()])
        views = []
        for frontend, entry in entries.items():
            connections, packets, octets = counters[entry.id]
            row = entry.row
            name, members = row.set.service_port, self._snapshot.sets[row.set].row
            views.append(
                FrontendView(
                    service=str(name.service),
                    port_name=name.port,
                    kind=row.kind.label,
                    address=_address(frontend, row.kind),
                    port=frontend.port,
                    protocol=frontend.protocol.name,
                    family=frontend.family,
                    scope=_scope(frontend, row.scoped),
                    pool=row.set.pool.name.lower(),
                    scheduler=members.scheduler.label,
                    backends=[str(backend) for backend in members.backends],
                    draining=[str(backend) for backend in members.draining],
                    on_empty=members.on_empty.name.lower(),
                    affinity_timeout=row.affinity_timeout,
                    masquerade=row.masquerade.name.lower().replace("_", "-"),
                    connections=dict(zip(_ORIGINS, connections, strict=True)),
                    packets=packets,
                    bytes=octets,
                )
            )
        order = [kind.label for kind in FrontendKind]
        views.sort(key=lambda v: (v.service, v.port_name, order.index(v.kind), v.family, v.address, v.port, v.scope))
        return views

    def backends(self) -> list[BackendView]:
        """All backends, by id."""
        entries = [
            (owner, backend, entry)
            for owner, entries in self._snapshot.backends.items()
            for backend, entry in entries.items()
        ]
        entries.sort(key=lambda item: item[2].id)
        counters = self._stats("backend_stats", [entry.id for _, _, entry in entries])
        views = []
        for owner, backend, entry in entries:
            connections, packets, octets = counters[entry.id]
            views.append(
                BackendView(
                    id=entry.id,
                    service=str(owner.service),
                    port_name=owner.port,
                    address=format_address(backend.address),
                    port=backend.port,
                    protocol=backend.protocol.name,
                    local=backend.local,
                    sets=entry.sets,
                    connections=sum(connections),
                    packets=packets,
                    bytes=octets,
                )
            )
        return views

    def node(self) -> NodeView:
        """Counters of the node."""
        rows = self._read("metrics", range(len(_HOOKS) * len(_REASONS)))
        metrics: dict[str, dict[str, int]] = {}
        for hook_number, hook in enumerate(_HOOKS):
            first = hook_number * len(_REASONS)
            counts = {reason: rows[first + at][0] for at, reason in enumerate(_REASONS)}
            metrics[hook] = _nonzero(counts)
        totals = Counter[str]()
        for hook, counts in metrics.items():
            totals.update(counts)
            if hook == "xdp":
                totals["no_neighbour"] -= counts.get("no_neighbour", 0)  # these are left to tc
        frontends = self._stats("frontend_stats", [entry.id for entry in self._snapshot.frontends.values()]).values()
        return NodeView(
            metrics=metrics,
            drops=_nonzero({reason: totals[reason] for reason in DROPS}),
            refusals=_nonzero({reason: totals[reason] for reason in REFUSALS}),
            connections=dict(zip(_ORIGINS, _columns(counters[0] for counters in frontends), strict=True)),
            packets=_total(counters[1] for counters in frontends),
            bytes=_total(counters[2] for counters in frontends),
            frontends=len(self._snapshot.frontends),
            sets=len(self._snapshot.sets),
            backends=sum(map(len, self._snapshot.backends.values())),
            node_addresses=sorted(str(address) for address in self._snapshot.node_addresses),
            map_sizes={name: map_.max_entries for name, map_ in self._maps.items() if map_.max_entries},
            map_rows=self._rows(),
        )

    def _rows(self) -> dict[str, int]:
        frontends = Counter(f"frontends{frontend.family}" for frontend in self._snapshot.frontends)
        counted = {
            name: sum(count for _, _, count in self._maps[name].batches(_ROWS_AT_ONCE))
            for name in _COUNTED
            if name in self._maps
        }
        return {
            "frontends4": frontends["frontends4"],
            "frontends6": frontends["frontends6"],
            "sets": len(self._snapshot.sets),
            "backends": sum(map(len, self._snapshot.backends.values())),
            "node_addresses": len(self._snapshot.node_addresses),
            **counted,
        }

    def _stats(self, name: str, ids: Sequence[int]) -> dict[int, tuple[list[int], dict[str, int], dict[str, int]]]:
        """Of each row: connections, and packets and bytes by direction."""
        ways = len(_DIRECTIONS)
        return {
            number: (
                counters[: -2 * ways],
                dict(zip(_DIRECTIONS, counters[-2 * ways : -ways], strict=True)),
                dict(zip(_DIRECTIONS, counters[-ways:], strict=True)),
            )
            for number, counters in self._read(name, ids).items()
        }

    def _read(self, name: str, ids: Sequence[int]) -> dict[int, list[int]]:
        """By id the 64-bit counters of a row, summed over the CPUs. Where many of the rows up to the last one are asked
        for, they are read in bulk."""
        map_ = self._maps[name]
        size, words = map_.row_size // 8, map_.shape.value_size // 8
        if not ids:
            return {}
        if len(ids) * _SPARSE < max(ids):
            rows = ((number, memoryview(map_.lookup(codec.U32.pack(number)) or b"").cast("Q")) for number in ids)
            return {number: [sum(row[word::words]) for word in range(words)] for number, row in rows}
        wanted, last, first = set(ids), max(ids), 0
        found: dict[int, list[int]] = {}
        for _, values, count in map_.batches(_ROWS_AT_ONCE):  # an array's rows come in their order
            numbers = values.cast("Q")
            for at in wanted.intersection(range(first, first + count)):
                start = (at - first) * size
                found[at] = [sum(numbers[start + word : start + size : words]) for word in range(words)]
            first += count
            if first > last:
                break
        return found


def _nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _columns(rows: Iterable[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)] or [0] * len(_ORIGINS)


def _total(rows: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total = dict.fromkeys(_DIRECTIONS, 0)
    for row in rows:
        for name, count in row.items():
            total[name] += count
    return total


def _address(frontend: Frontend, kind: FrontendKind) -> str:
    return "*" if kind is FrontendKind.NODE_PORT else format_address(frontend.address)


def _scope(frontend: Frontend, scoped: bool) -> str:
    if not scoped and frontend.scope is Scope.EXTERNAL:
        return "all"
    return frontend.scope.name.lower()
