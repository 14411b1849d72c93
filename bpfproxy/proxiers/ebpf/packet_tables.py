"""What packets need beside the service tables: backends by address, networks of clients, the node and its devices.

Does nothing where only the socket level is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from bpfproxy.model.address import ANY4, ANY6, Address, Family, family_of
from bpfproxy.model.device import DevicePlan
from bpfproxy.model.frontend import Backend, Frontend
from bpfproxy.proxiers.base import Failure, Op
from bpfproxy.proxiers.ebpf import codec, packet
from bpfproxy.proxiers.ebpf.rows import Range
from bpfproxy.proxiers.ebpf.served_ports import ServedPorts
from bpfproxy.proxiers.ebpf.snapshot import Backends, Maps
from bpfproxy.proxiers.ebpf.writing import delete_rows, write_rows

_FAMILIES: tuple[Family, ...] = (4, 6)
_TRUE = codec.U32.pack(1)


class PacketTables:
    """Writes the maps of packet_maps.h that user space fills."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._fresh: dict[Backend, int] = {}
        self._ports: ServedPorts | None = None

    @property
    def loaded(self) -> bool:
        """Whether there is a packet level. It may come later."""
        return "networks4" in self._maps

    def reconcile(self, frontends: Iterable[Frontend], backends: Backends) -> None:
        """Bring our rows to what the service tables hold: an agent was killed between two writes, or ran without the
        packet level."""
        if self.loaded:
            self._ports = ServedPorts(self._maps, chain(frontends, *backends.values()))
            self._reconcile_backends(backends)

    # ---- ports: packets to others are none of ours ----

    def serve(self, holder: Frontend | Backend) -> None:
        """A frontend or backend is about to get its row."""
        if self._ports:
            self._ports.add(holder)

    def leave(self, holder: Frontend | Backend) -> None:
        """The opposite of `serve`, when the row is gone."""
        if self._ports:
            self._ports.remove(holder)

    # ---- backends: packets to them directly are told from those to a Service ----

    def know(self, backend: Backend, number: int) -> None:
        """Note the id of a backend, until `flush`."""
        if self.loaded:
            self._fresh[backend] = number

    def _reconcile_backends(self, backends: Backends) -> None:
        for family in _FAMILIES:
            wanted = {
                packet.encode_backend_key(backend): codec.U32.pack(entry.id)
                for entries in backends.values()
                for backend, entry in entries.items()
                if family_of(backend.address) == family
            }
            map_ = self._maps[f"backend_ids{family}"]
            found = {bytes(key): bytes(value) for key, value in map_.items()}
            delete_rows(map_, [key for key in found if key not in wanted])
            fresh = {key: value for key, value in wanted.items() if found.get(key) != value}
            write_rows(map_, list(fresh), list(fresh.values()))

    def flush(self) -> None:
        """Write what was noted. A row that finds no room is no harm: a client that goes both ways from one port may
        find that port taken."""
        for family in _FAMILIES if self._fresh else ():
            mine = [(b, number) for b, number in self._fresh.items() if family_of(b.address) == family]
            keys = [packet.encode_backend_key(backend) for backend, _ in mine]
            write_rows(self._maps[f"backend_ids{family}"], keys, [codec.U32.pack(number) for _, number in mine])
        self._fresh.clear()

    def forget(self, backend: Backend, number: int) -> None:
        """The opposite of `know`, at once. Another Service's id for the same address stays; if it was noted before
        this one, `reconcile` brings it back, and until then it is as if there had been no room for its row."""
        self._fresh.pop(backend, None)
        if self.loaded:
            map_, key = self._maps[f"backend_ids{family_of(backend.address)}"], packet.encode_backend_key(backend)
            if map_.lookup(key) == codec.U32.pack(number):
                map_.delete(key)

    # ---- networks ----

    def admit(self, frontend_id: int, ranges: Iterable[Range]) -> str:
        """Let clients of more networks use a frontend. Returns why one could not be written, or nothing."""
        for address, prefix in ranges if self.loaded else ():
            key = packet.encode_network(frontend_id, address, prefix)
            for reason in write_rows(self._maps[f"networks{family_of(address)}"], [key], [_TRUE]).values():
                return reason
        return ""

    def dismiss(self, frontend_id: int, ranges: Iterable[Range]) -> None:
        """The opposite of `admit`."""
        for address, prefix in ranges if self.loaded else ():
            key = packet.encode_network(frontend_id, address, prefix)
            delete_rows(self._maps[f"networks{family_of(address)}"], [key])

    def write_networks(self, ops: Sequence[Op]) -> list[Failure]:
        """Pod networks of the cluster."""
        told = [(op, self.admit(packet.CLUSTER, [(op.key.address, op.key.prefix)])) for op in ops]
        return [Failure(op, reason) for op, reason in told if reason]

    def delete_networks(self, ops: Sequence[Op]) -> list[Failure]:
        """Pod networks that are none any more."""
        self.dismiss(packet.CLUSTER, [(op.key.address, op.key.prefix) for op in ops])
        return []

    # ---- the node and its devices ----

    def write_node(self, ops: Sequence[Op]) -> list[Failure]:
        """Row 0 of `node`."""
        for op in ops if self.loaded else ():
            source = _by_family(op.row.sources)
            row = packet.encode_node(op.row.route_generation, source[4], source[6], shared=op.row.shared)
            self._maps["node"].update(codec.U32.pack(0), row)
        return []

    def write_devices(self, ops: Sequence[Op]) -> None:
        """What programs know of a device, before they are attached to it."""
        for op in ops if self.loaded else ():
            write_device(self._maps, op.row, xdp=False)

    def delete_devices(self, ops: Sequence[Op]) -> None:
        """After the programs are gone from them."""
        if self.loaded:
            delete_rows(self._maps["devices"], [codec.U32.pack(op.key.index) for op in ops])


def write_device(maps: Maps, plan: DevicePlan, *, xdp: bool) -> None:
    """What programs know of a device; `xdp`: an XDP program has been attached to it."""
    source = _by_family(plan.sources)
    row = packet.encode_device(pod=plan.one_pod, xdp=xdp, address4=source[4], address6=source[6])
    maps["devices"].update(codec.U32.pack(plan.index), row)


def _by_family(addresses: Iterable[Address]) -> Mapping[Family, Address]:
    found: dict[Family, Address] = {4: ANY4, 6: ANY6}
    found.update({family_of(address): address for address in addresses})
    return found
