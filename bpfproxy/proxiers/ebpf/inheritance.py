"""What a new version takes over from maps of another layout or size, which attached programs still use.

Flows, affinities and sockets refer to backends and frontends by their ids, so ids are kept: the new tables are filled
from what the source says, but whoever had an id gets the same one. Then a map whose layout and size have not changed
goes on being used, by the old programs and the new ones at once, and nothing can be lost. The rows of the others are
copied: before the programs change over, and again after, for what came in between. A connection that is being opened
in those few milliseconds may have to be opened again.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from bpfproxy.datapath import abi, bpffs, libbpf, schema
from bpfproxy.datapath.maps import NOEXIST, Map
from bpfproxy.datapath.schema import IncompatibleError, Schema, Translation
from bpfproxy.events import emit
from bpfproxy.model.frontend import Backend, Frontend, ServicePortName
from bpfproxy.proxiers.ebpf import codec
from bpfproxy.proxiers.ebpf.snapshot import Maps

log = logging.getLogger(__name__)

# What programs write and what has to last. (Of a fragmented packet the rest is on its way already.)
SOCKETS: Final = ("sockets", "tcp_peers", "udp_sockets", "udp_sessions", "affinities")
FLOWS: Final = ("flows4", "flows6", "tuples4", "tuples6")
_UNLISTED: Final = frozenset({"sockets"})
"""Maps whose rows nobody can list."""
_UNFORGETTING: Final = frozenset({"tcp_peers"})
"""Maps that never drop what is used no more."""
_CHUNK: Final = 4096
_FULL: Final = (errno.E2BIG, errno.ENOMEM)
_FRONTEND_ID: Final = abi.layout("struct frontend", "id")
_GENERATION: Final = abi.layout("struct backend", "generation")


class Ids(Struct):
    """Ids that were in force. They are taken out as those that had them come for them."""

    backends: dict[Backend, dict[int, ServicePortName | None]] = field(default_factory=dict)
    """By id, whose it was: those of several Services may have one address. None: nobody knows."""
    frontends: dict[Frontend, int] = field(default_factory=dict)
    generations: dict[int, int] = field(default_factory=dict)
    """Of every id of a backend that was ever given."""


class Former:
    """A directory with maps of another layout or size; `record` is the file where their schema is written down."""

    def __init__(self, directory: Path, record: Path) -> None:
        self._directory = directory
        self._record = record
        self._schema = Schema(record.read_text()) if record.exists() else None
        self._done: dict[str, set[bytes]] = {}
        """Keys by map that were copied, or that no room was found for."""
        self._lost = Counter[str]()

    def __str__(self) -> str:
        return self._directory.name

    def ids(self) -> Ids:
        """Who has which id; none where the layout is not known."""
        ids = Ids()
        try:
            owners = self._owners()
            for key, value in self._rows("backends"):
                (generation,) = _GENERATION.unpack(value)
                if generation:
                    (number,) = codec.U32.unpack(key)
                    ids.generations[number] = generation
                    backend, _, serving = codec.decode_backend(value)
                    if serving:
                        ids.backends.setdefault(backend, {})[number] = owners.get(number)
            for family in (4, 6):
                for key, value in self._rows(f"frontends{family}"):
                    (ids.frontends[codec.decode_frontend_key(family, key)],) = _FRONTEND_ID.unpack(value)
        except (IncompatibleError, OSError) as error:
            self._tell("not_inherited", what="ids", reason=error)
        return ids

    def _owners(self) -> dict[int, ServicePortName]:
        """Whose each backend is, by its id; nothing where sets are written in another way."""
        names = ("sets", "slots", "set_names")
        if self._schema is None or not all(self._schema.same(name, schema.current()) for name in names):
            return {}
        owners: dict[int, ServicePortName] = {}
        with (
            Map.open(self._directory / "sets") as sets,
            Map.open(self._directory / "slots") as slots,
            Map.open(self._directory / "set_names") as set_names,
        ):
            words, ids = sets.mmap().cast("Q"), slots.mmap().cast("I")
            for key, value in set_names.items():
                word = codec.SetWord(words[codec.U32.unpack(key)[0]])
                if word.in_use:
                    drain = word.members + word.count
                    members = [*ids[word.members : drain], *ids[drain + 1 : drain + 1 + ids[drain]]]
                    owners.update(dict.fromkeys(members, codec.decode_set_name(value).service_port))
        return owners

    def share(self, directory: Path, names: Iterable[str], sizes: Mapping[str, int]) -> None:
        """Pin those maps that go on being used in the directory of this version, too."""
        for name in names:
            path = directory / name
            if path.exists() or self._schema is None or not self._schema.same(name, schema.current()):
                continue
            with suppress(FileNotFoundError), Map.open(self._directory / name) as map_:
                if map_.max_entries == sizes.get(name, 0):
                    libbpf.pin(map_.fd, path)

    def copy(self, maps: Maps) -> None:
        """Copy the rows of maps that are not shared, except those that are there. Again: what has come since."""
        for name in (*SOCKETS, *FLOWS):
            if name not in maps:
                continue
            try:
                with Map.open(self._directory / name) as former:
                    if former.id != maps[name].id:
                        self._copy(former, name, maps[name])
            except FileNotFoundError:
                continue
            except (IncompatibleError, OSError) as error:
                if name not in self._done:
                    self._tell("not_inherited", what=name, reason=error)
                self._done.setdefault(name, set())

    def _copy(self, former: Map, name: str, new: Map) -> None:
        if name in _UNLISTED:
            raise IncompatibleError("its layout has changed, and its rows cannot be listed")
        keys_of, values_of = self._translation(name)
        done = self._done.setdefault(name, set())
        found: set[bytes] = set()
        for some_keys, some_values, _ in former.batches(_CHUNK):
            keys = _split(keys_of(some_keys), new.shape.key_size)
            found.update(keys)
            if done.issuperset(keys):
                continue
            for key, value in zip(keys, _split(values_of(some_values), new.row_size), strict=True):
                if key not in done:
                    done.add(key)
                    self._insert(name, new, key, value)
        if name in _UNFORGETTING:
            for key in done - found:
                new.delete(key)
            done &= found

    def _insert(self, name: str, new: Map, key: bytes, value: bytes) -> None:
        try:
            new.update(key, value, NOEXIST)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._lost[name] += 1

    def remove(self) -> None:
        """Unpin the maps: the programs that used them are gone. Tells what became of their rows."""
        copied = {name: len(rows) - self._lost[name] for name, rows in self._done.items()}
        self._tell("inherited", logging.INFO, copied=sum(copied.values()))
        for name, count in self._lost.items():
            self._tell("not_inherited", what=name, rows=count, reason="map is full")
        bpffs.remove_tree(self._directory)
        self._record.unlink(missing_ok=True)

    def _rows(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """In this version's layout. Raises IncompatibleError, OSError."""
        keys_of, values_of = self._translation(name)
        with Map.open(self._directory / name) as former:
            for some_keys, some_values, count in former.batches(_CHUNK):
                keys, values = keys_of(some_keys), values_of(some_values)
                yield from zip(_split(keys, len(keys) // count), _split(values, len(values) // count), strict=True)

    def _translation(self, name: str) -> tuple[Translation, Translation]:
        if self._schema is None:
            raise IncompatibleError("the layout of these maps was not written down")
        return self._schema.translation(name, schema.current())

    def _tell(self, event: str, level: int = logging.WARNING, **fields: object) -> None:
        emit(log, level, event, maps=str(self), **fields)


def _split(rows: bytes, size: int) -> list[bytes]:
    return [row for (row,) in struct.iter_unpack(f"{size}s", rows)]
