"""A running node as its maps show it: what `service`, `backend` and `stats` print. Reads, never writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from bpfproxy.datapath import abi
from bpfproxy.model.address import format_address
from bpfproxy.model.frontend import Frontend, FrontendKind, Scope
from bpfproxy.proxiers.ebpf import codec, snapshot
from bpfproxy.proxiers.ebpf.snapshot import Maps

_ORIGINS = [origin.name.lower() for origin in abi.enum_of("origin", "ORIGIN_")]
_HOOKS = [hook.name.lower() for hook in abi.enum_of("hook", "HOOK_")]
_REASONS = [reason.name.lower() for reason in abi.enum_of("reason", "REASON_")]


class BackendView(Struct, frozen=True):
    """One backend. `connections` counts those that were given to it since it got its id."""

    id: int
    address: str
    port: int
    protocol: str
    local: bool
    sets: int
    connections: int


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
    """By origin: the kind of hook that translated (`connect`, `sendmsg`)."""


class NodeView(Struct, frozen=True):
    """Counters and occupancy of the whole node."""

    metrics: dict[str, dict[str, int]]
    """hook → reason → count, zeros left out."""
    connections: int
    frontends: int
    sets: int
    backends: int
    node_addresses: list[str]
    map_sizes: dict[str, int]
    """Rows at most, by map."""


class View:
    """Reads the maps once, at construction; counters are read when asked for."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._snapshot = snapshot.take(maps)

    def frontends(self) -> list[FrontendView]:
        """All frontends, by service, kind and address."""
        entries = self._snapshot.frontends
        counters = self._read("frontend_stats", [entry.id for entry in entries.values()])
        views = []
        for (frontend, entry), counter in zip(entries.items(), counters, strict=True):
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
                    connections=dict(zip(_ORIGINS, counter, strict=True)),
                )
            )
        order = [kind.label for kind in FrontendKind]
        views.sort(key=lambda v: (v.service, v.port_name, order.index(v.kind), v.family, v.address, v.port, v.scope))
        return views

    def backends(self) -> list[BackendView]:
        """All backends, by id."""
        entries = sorted(self._snapshot.backends.items(), key=lambda item: item[1].id)
        counters = self._read("backend_stats", [entry.id for _, entry in entries])
        return [
            BackendView(
                id=entry.id,
                address=format_address(backend.address),
                port=backend.port,
                protocol=backend.protocol.name,
                local=backend.local,
                sets=entry.sets,
                connections=counter[0],
            )
            for (backend, entry), counter in zip(entries, counters, strict=True)
        ]

    def node(self) -> NodeView:
        """Counters of the node."""
        metrics: dict[str, dict[str, int]] = {}
        values = iter(self._read("metrics", range(len(_HOOKS) * len(_REASONS))))
        for hook in _HOOKS:
            counts = {reason: next(values)[0] for reason in _REASONS}
            metrics[hook] = {reason: count for reason, count in counts.items() if count}
        return NodeView(
            metrics=metrics,
            connections=sum(sum(view.connections.values()) for view in self.frontends()),
            frontends=len(self._snapshot.frontends),
            sets=len(self._snapshot.sets),
            backends=len(self._snapshot.backends),
            node_addresses=sorted(str(address) for address in self._snapshot.node_addresses),
            map_sizes={name: map_.max_entries for name, map_ in self._maps.items() if map_.max_entries},
        )

    def _read(self, name: str, ids: Sequence[int]) -> Iterator[list[int]]:
        """For each row its 64-bit counters, summed over the CPUs."""
        map_ = self._maps[name]
        for number in ids:
            per_cpu = (memoryview(value).cast("Q") for value in map_.lookup_per_cpu(codec.U32.pack(number)))
            yield [sum(column) for column in zip(*per_cpu, strict=True)]


def _address(frontend: Frontend, kind: FrontendKind) -> str:
    return "*" if kind is FrontendKind.NODE_PORT else format_address(frontend.address)


def _scope(frontend: Frontend, scoped: bool) -> str:
    if not scoped and frontend.scope is Scope.EXTERNAL:
        return "all"
    return frontend.scope.name.lower()
