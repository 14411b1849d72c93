"""The writer of the service tables.

A set is written as: rows of new backends → a new extent of slots → its name → its word, which flips all its frontends
at once. Backends, sets and slots are written through mmap, each word of a set by one aligned 64-bit store, so that a
change costs no system call but those of a new name or frontend.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from bpfproxy.datapath import abi, maglev
from bpfproxy.model.frontend import Backend, Frontend, ServicePortName
from bpfproxy.model.service import Scheduler
from bpfproxy.proxiers.base import Failure, Op
from bpfproxy.proxiers.ebpf import codec
from bpfproxy.proxiers.ebpf.alloc import Clock, ExtentAllocator, IdAllocator, TableFullError
from bpfproxy.proxiers.ebpf.inheritance import Ids
from bpfproxy.proxiers.ebpf.packet_tables import PacketTables
from bpfproxy.proxiers.ebpf.rows import FrontendRow, SetKey, SetRow
from bpfproxy.proxiers.ebpf.snapshot import BackendEntry, FrontendEntry, Maps, SetEntry, Snapshot
from bpfproxy.proxiers.ebpf.writing import delete_rows, write_rows

Key = TypeVar("Key")

_FLAGS = abi.ffi.offsetof("struct backend", "flags")
_SIZE = codec.BACKEND.size
_GENERATION = abi.ffi.offsetof("struct backend", "generation")


class Gone(Struct, frozen=True):
    """A backend that stopped being Serving."""

    backend: Backend
    id: int
    generation: int


class BackendTable:
    """Backends by ServicePort and identity, counted by the sets that hold them. Those in `former` are given the ids
    that they had."""

    def __init__(
        self, maps: Maps, packets: PacketTables, found: Snapshot, former: Ids, grace: float, clock: Clock
    ) -> None:
        self._packets = packets
        self._rows = maps["backends"].mmap()
        self._words = self._rows.cast("I")
        self._stats = maps["backend_stats"]
        self.entries = found.backends
        size = maps["backends"].max_entries
        used = {entry.id for entries in found.backends.values() for entry in entries.values()}
        self._former = former.backends
        for numbers in self._former.values():
            for number in [number for number in numbers if number in used or number >= size]:
                del numbers[number]
        waiting = {number for numbers in self._former.values() for number in numbers}
        self._ids = IdAllocator("backends (--max-backends)", size, grace, clock, used | waiting)
        for number, generation in former.generations.items():
            if number < size and not self._words[_generation_word(number)]:
                self._words[_generation_word(number)] = generation
        self.gone: list[Gone] = []

    def acquire(self, owner: ServicePortName, backends: Sequence[Backend]) -> list[int]:
        """Ids of `backends`, each held once more; writes the rows of new ones. Raises TableFullError and holds none."""
        entries = self.entries.setdefault(owner, {})
        ids: list[int] = []
        try:
            for backend in backends:
                entry = entries.get(backend)
                if entry is None:
                    entry = entries[backend] = self._write(owner, backend)
                else:
                    entry.sets += 1
                ids.append(entry.id)
        except TableFullError:
            self.release(owner, backends[: len(ids)])
            raise
        return ids

    def release(self, owner: ServicePortName, backends: Iterable[Backend]) -> None:
        """The opposite of `acquire`. A backend that no set holds stops being Serving at once; its address stays in its
        row until the id is given away, for a program that has just read the id."""
        entries = self.entries.get(owner, {})
        for backend in backends:
            entry = entries[backend]
            entry.sets -= 1
            if not entry.sets:
                del entries[backend]
                self._rows[entry.id * _SIZE + _FLAGS] &= ~codec.SERVING
                self._stats.zero(entry.id)
                self._ids.free(entry.id)
                self._packets.forget(backend, entry.id)
                self._packets.leave(backend)
                self.gone.append(Gone(backend, entry.id, entry.generation))
                twin = replace(backend, local=not backend.local)
                if twin in entries:  # the same address on another node: a Service is about to move over
                    self._packets.know(twin, entries[twin].id)
        if not entries:
            self.entries.pop(owner, None)

    def settle(self) -> None:
        """Those in `former` who have not come for their ids are gone."""
        for backend, numbers in self._former.items():
            for number in numbers:
                self._ids.free(number)
                self.gone.append(Gone(backend, number, self._words[_generation_word(number)]))
        self._former.clear()

    def _write(self, owner: ServicePortName, backend: Backend) -> BackendEntry:
        former = self._former.get(backend, {})
        known = next((number for number, whose in former.items() if whose in (owner, None)), None)
        if known is None:
            number = self._ids.allocate()
        else:
            number = known
            del former[known]
        at = number * _SIZE
        generation = self._words[_generation_word(number)] + (known is None) & 0xFFFFFFFF
        self._rows[at : at + _SIZE] = codec.encode_backend(backend, generation)
        self._packets.serve(backend)
        self._packets.know(backend, number)
        return BackendEntry(number, generation, 1)


def _generation_word(number: int) -> int:
    """Where in the backends, as 32-bit words, the generation of an id stands."""
    return (number * _SIZE + _GENERATION) // 4


def _keep_free(former: dict[Key, int], used: Container[int], known: Container[Key], size: int) -> None:
    """Leave those whose id can still be theirs."""
    for key in [key for key, number in former.items() if number in used or key in known or number >= size]:
        del former[key]


class SetTable:
    """Sets by key."""

    def __init__(
        self, maps: Maps, packets: PacketTables, found: Snapshot, former: Ids, grace: float, clock: Clock
    ) -> None:
        self._packets = packets
        self._words = maps["sets"].mmap().cast("Q")
        self._slots = maps["slots"].mmap().cast("I")
        self._names = maps["set_names"]
        self.backends = BackendTable(maps, packets, found, former, grace, clock)
        self.entries = found.sets
        self.frontends = Counter(entry.row.set for entry in found.frontends.values())
        """How many frontends lead to each set."""
        self._ids = IdAllocator(
            "sets (--max-sets)", maps["sets"].max_entries, grace, clock, (entry.id for entry in found.sets.values())
        )
        extents = ((entry.base, entry.length) for entry in found.sets.values())
        self._extents = ExtentAllocator("slots (--max-slots)", len(self._slots), grace, clock, extents)

    def write(self, ops: Sequence[Op]) -> list[Failure]:
        """Add or change sets."""
        failures: list[Failure] = []
        staged: list[tuple[Op, SetEntry, int]] = []
        names: list[tuple[int, bytes, bytes]] = []
        for op in ops:
            try:
                entry, word = self._stage(op.key, op.row)
                if op.key not in self.entries:
                    names.append((len(staged), codec.U32.pack(entry.id), codec.encode_set_name(op.key)))
                staged.append((op, entry, word))
            except (TableFullError, ValueError) as error:
                failures.append(Failure(op, str(error)))
        refused = {
            names[index][0]: reason
            for index, reason in write_rows(self._names, [n[1] for n in names], [n[2] for n in names]).items()
        }
        self._packets.flush()
        for index, (op, entry, word) in enumerate(staged):
            if index in refused:
                self._discard(op.key, entry)
                failures.append(Failure(op, refused[index]))
                continue
            self._words[entry.id] = word
            former = self.entries.get(op.key)
            self.entries[op.key] = entry
            if former is not None:
                self._drop_members(op.key, former)
        self._packets.flush()
        return failures

    def delete(self, ops: Sequence[Op]) -> list[Failure]:
        """Remove sets, unless a frontend still leads to them."""
        failures: list[Failure] = []
        gone: list[tuple[SetKey, SetEntry]] = []
        for op in ops:
            if self.frontends[op.key] > 0:
                failures.append(Failure(op, "a frontend that could not be removed still leads to it"))
            elif op.key in self.entries:
                gone.append((op.key, self.entries.pop(op.key)))
        for _, entry in gone:
            self._words[entry.id] = 0
        delete_rows(self._names, [codec.U32.pack(entry.id) for _, entry in gone])
        for key, entry in gone:
            self._discard(key, entry)
        return failures

    def _stage(self, key: SetKey, row: SetRow) -> tuple[SetEntry, int]:
        """Write all that the set's word is to lead to."""
        former = self.entries.get(key)
        ids = self.backends.acquire(key.service_port, row.backends)
        table_log2 = maglev.table_log2(len(ids)) if row.scheduler is Scheduler.MAGLEV else 0
        table = 1 << table_log2 if table_log2 else 0
        held = list(row.backends)
        length = table + len(ids) + 1 + len(row.draining)
        base = -1
        try:
            draining = self.backends.acquire(key.service_port, row.draining)
            held += row.draining
            base = self._extents.allocate(length)
            set_id = self._ids.allocate() if former is None else former.id
        except TableFullError:
            self.backends.release(key.service_port, held)
            if base >= 0:
                self._extents.free(base, length)
            raise
        slots = self._slots
        if table:
            slots[base : base + table] = memoryview(maglev.fill(row.backends, ids, table_log2)).cast("B").cast("I")
        members = array("I", sorted(ids))
        members.append(len(draining))
        members.extend(draining)
        slots[base + table : base + length] = memoryview(members)
        entry = SetEntry(set_id, row, base, length)
        return entry, codec.encode_set(row, base, table_log2)

    def _drop_members(self, key: SetKey, entry: SetEntry) -> None:
        self.backends.release(key.service_port, [*entry.row.backends, *entry.row.draining])
        self._extents.free(entry.base, entry.length)

    def _discard(self, key: SetKey, entry: SetEntry) -> None:
        self._drop_members(key, entry)
        self._ids.free(entry.id)


class FrontendTable:
    """Frontends of both families. Those in `former` are given the ids that they had."""

    def __init__(
        self,
        maps: Maps,
        packets: PacketTables,
        found: Snapshot,
        former: Ids,
        sets: SetTable,
        grace: float,
        clock: Clock,
    ) -> None:
        self._packets = packets
        self._maps = {4: maps["frontends4"], 6: maps["frontends6"]}
        self._stats = maps["frontend_stats"]
        self._sets = sets
        self.entries = found.frontends
        size = maps["frontend_stats"].max_entries
        used = {entry.id for entry in found.frontends.values()}
        self._former = former.frontends
        _keep_free(self._former, used, found.frontends, size)
        self._ids = IdAllocator("frontends (--max-frontends)", size, grace, clock, used | {*self._former.values()})

    def settle(self) -> None:
        """Those in `former` who have not come for their ids are gone."""
        for number in self._former.values():
            self._ids.free(number)
        self._former.clear()

    def write(self, ops: Sequence[Op]) -> list[Failure]:
        """Add or change frontends whose sets are there."""
        return [failure for family in (4, 6) for failure in self._write(family, ops)]

    def _write(self, family: int, ops: Sequence[Op]) -> list[Failure]:
        failures: list[Failure] = []
        staged: list[tuple[Op, FrontendEntry]] = []
        keys: list[bytes] = []
        values: list[bytes] = []
        for op in ops:
            frontend: Frontend = op.key
            row: FrontendRow = op.row
            if frontend.family != family:
                continue
            former = self.entries.get(frontend)
            target = self._sets.entries.get(row.set)
            if target is None:
                failures.append(Failure(op, "its set could not be written"))
                continue
            try:
                frontend_id = self._id_of(frontend) if former is None else former.id
            except TableFullError as error:
                failures.append(Failure(op, str(error)))
                continue
            if row.source_ranges and (reason := self._packets.admit(frontend_id, row.source_ranges)):
                failures.append(Failure(op, reason))
                if former is None:
                    self._packets.dismiss(frontend_id, row.source_ranges)
                    self._ids.free(frontend_id)
                continue
            if former is None:
                self._packets.serve(frontend)
            staged.append((op, FrontendEntry(frontend_id, row)))
            keys.append(codec.encode_frontend_key(frontend))
            values.append(codec.encode_frontend(row, target.id, frontend_id))
        refused = write_rows(self._maps[family], keys, values)
        for index, (op, entry) in enumerate(staged):
            former = self.entries.get(op.key)
            if index in refused:
                failures.append(Failure(op, refused[index]))
                if former is None:
                    self._packets.dismiss(entry.id, entry.row.source_ranges)
                    self._packets.leave(op.key)
                    self._ids.free(entry.id)
                continue
            self.entries[op.key] = entry
            self._sets.frontends[entry.row.set] += 1
            if former is not None:
                self._sets.frontends[former.row.set] -= 1
                stale = set(former.row.source_ranges) - set(entry.row.source_ranges)
                self._packets.dismiss(entry.id, stale)
        return failures

    def _id_of(self, frontend: Frontend) -> int:
        known = self._former.pop(frontend, None)
        return self._ids.allocate() if known is None else known

    def delete(self, ops: Sequence[Op]) -> list[Failure]:
        """Remove frontends; one that is not there is no error."""
        for family in (4, 6):
            gone = [op.key for op in ops if op.key.family == family]
            delete_rows(self._maps[family], [codec.encode_frontend_key(frontend) for frontend in gone])
            for frontend in gone:
                entry = self.entries.pop(frontend, None)
                if entry is not None:
                    self._sets.frontends[entry.row.set] -= 1
                    self._packets.dismiss(entry.id, entry.row.source_ranges)
                    self._packets.leave(frontend)
                    self._stats.zero(entry.id)
                    self._ids.free(entry.id)
        return []
