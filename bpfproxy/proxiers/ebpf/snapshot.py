"""What the service tables in the kernel hold, with names in place of ids. For restarts, resyncs and people."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from bpfproxy.datapath.maps import Map
from bpfproxy.model.frontend import Backend, Frontend, ServicePortName
from bpfproxy.proxiers.base import Key, Row
from bpfproxy.proxiers.ebpf import codec, packet
from bpfproxy.proxiers.ebpf.rows import (
    ClusterNetwork,
    FrontendRow,
    NodeAddress,
    NodeAddressRow,
    NodeKey,
    NodeRow,
    Range,
    SetKey,
    SetRow,
)

Maps = Mapping[str, Map]


class SetEntry(Struct, gc=False):
    """A set and where it lies."""

    id: int
    row: SetRow
    base: int
    length: int


class BackendEntry(Struct, gc=False):
    """A backend's id; `sets` counts the sets of its ServicePort that hold it."""

    id: int
    generation: int
    sets: int = 0


Backends = dict[ServicePortName, dict[Backend, BackendEntry]]
"""By the ServicePort that they stand behind: an endpoint may leave one Service and stay in another, and then the
UDP state of the first alone has to go (rule 16)."""


class FrontendEntry(Struct, gc=False):
    """A frontend's id, and the set that it leads to."""

    id: int
    row: FrontendRow


class Snapshot(Struct):
    """The tables at one moment. The agent is their only writer, so in the agent it is exact."""

    sets: dict[SetKey, SetEntry] = field(default_factory=dict)
    backends: Backends = field(default_factory=dict)
    frontends: dict[Frontend, FrontendEntry] = field(default_factory=dict)
    node_addresses: dict[NodeAddress, NodeAddressRow] = field(default_factory=dict)
    cluster_networks: dict[ClusterNetwork, bool] = field(default_factory=dict)
    node: dict[NodeKey, NodeRow] = field(default_factory=dict)
    unused_names: list[int] = field(default_factory=list)
    """Ids of names whose set was never written, or is gone: an agent was killed between two writes."""
    dangling: list[Frontend] = field(default_factory=list)
    """Frontends whose set is not there, which only another hand can bring about."""

    def rows(self) -> dict[Key, Row]:
        """As the engine remembers them."""
        rows: dict[Key, Row] = {key: entry.row for key, entry in self.sets.items()}
        rows.update((frontend, entry.row) for frontend, entry in self.frontends.items())
        rows.update(self.node_addresses)
        rows.update(self.cluster_networks)
        rows.update(self.node)
        return rows


def take(maps: Maps) -> Snapshot:
    """Read all service tables. Costs in proportion to what is in use, not to the maps' sizes."""
    snapshot = Snapshot()
    names: dict[int, SetKey] = {}
    words = maps["sets"].mmap().cast("Q")
    reader = _SetReader(maps, snapshot)
    for key, value in maps["set_names"].items():
        (set_id,) = codec.U32.unpack(key)
        word = codec.SetWord(words[set_id])
        if not word.in_use:
            snapshot.unused_names.append(set_id)
            continue
        name = names[set_id] = codec.decode_set_name(value)
        snapshot.sets[name] = reader.read(name.service_port, set_id, word)
    ranges = _take_networks(maps, snapshot)
    for family in (4, 6):
        for key, value in maps[f"frontends{family}"].items():
            frontend = codec.decode_frontend_key(family, key)
            try:
                row, frontend_id = codec.decode_frontend(value, names)
            except KeyError:
                snapshot.dangling.append(frontend)
                continue
            if frontend_id in ranges:
                row = replace(row, source_ranges=tuple(sorted(ranges[frontend_id])))
            snapshot.frontends[frontend] = FrontendEntry(frontend_id, row)
    for key, value in maps["node_addresses"].items():
        address, address_row = codec.decode_node_address(bytes(key), value)
        snapshot.node_addresses[address] = address_row
    return snapshot


def _take_networks(maps: Maps, snapshot: Snapshot) -> dict[int, list[Range]]:
    """The packet level's rows, where it is loaded. Returns source ranges by frontend id."""
    ranges: dict[int, list[Range]] = {}
    if "networks4" not in maps:
        return ranges
    for family in (4, 6):
        for row in maps[f"networks{family}"].items():
            owner, network = packet.decode_network(family, row[0])
            if owner == packet.CLUSTER:
                snapshot.cluster_networks[ClusterNetwork(*network)] = True
            else:
                ranges.setdefault(owner, []).append(network)
    node = NodeRow(*packet.decode_node(maps["node"].lookup(codec.U32.pack(0)) or b""))
    if node.route_generation:
        snapshot.node[NodeKey()] = node
    return ranges


class _SetReader:
    """Follows sets to their backends; each backend is decoded once."""

    def __init__(self, maps: Maps, snapshot: Snapshot) -> None:
        self._slots = maps["slots"].mmap().cast("I")
        self._rows = maps["backends"].mmap()
        self._known: dict[int, Backend] = {}
        self._snapshot = snapshot

    def read(self, owner: ServicePortName, set_id: int, word: codec.SetWord) -> SetEntry:
        drain = word.members + word.count
        end = drain + 1 + self._slots[drain]
        backends = self._backends(owner, word.members, drain)
        draining = self._backends(owner, drain + 1, end)
        row = SetRow(backends, draining, word.on_empty, word.scheduler)
        return SetEntry(set_id, row, word.base, end - word.base)

    def _backends(self, owner: ServicePortName, start: int, end: int) -> tuple[Backend, ...]:
        entries = self._snapshot.backends.setdefault(owner, {})
        return tuple(sorted(self._backend(entries, number) for number in self._slots[start:end]))

    def _backend(self, entries: dict[Backend, BackendEntry], number: int) -> Backend:
        backend = self._known.get(number)
        if backend is None:
            size = codec.BACKEND.size
            row = self._rows[number * size : (number + 1) * size]
            backend, generation, _ = codec.decode_backend(row)
            self._known[number] = backend
            entries[backend] = BackendEntry(number, generation)
        entries[backend].sets += 1
        return backend
