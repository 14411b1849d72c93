"""Rows ↔ bytes. Layouts and constants come from bpf/abi.h through cffi; only names of fields stand here."""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Any, Final

from bpfproxy.datapath import abi
from bpfproxy.model.address import V4_MAPPED_PREFIX, Address, Family, from_v4_mapped, v4_mapped
from bpfproxy.model.frontend import (
    Backend,
    Frontend,
    FrontendKind,
    Masquerade,
    OnEmpty,
    Pool,
    Scope,
    ServicePortName,
)
from bpfproxy.model.service import ObjectName, Protocol, Scheduler
from bpfproxy.proxiers.ebpf.rows import FrontendRow, NodeAddress, NodeAddressRow, SetKey, SetRow

BACKEND: Final = abi.layout("struct backend")
FRONTEND: Final = abi.layout("struct frontend")
FRONTEND_KEYS: Final = {4: abi.layout("struct frontend4_key"), 6: abi.layout("struct frontend6_key")}
SET_NAME: Final = abi.layout("struct set_name")
NODE_ADDRESS: Final = abi.layout("struct node_address")
UDP_SOCKET: Final = abi.layout("struct udp_socket")
U32: Final = struct.Struct("=I")

IN_USE: Final = abi.constant("SET_IN_USE")
_DROP: Final = abi.constant("SET_DROP")
_SCHEDULER_SHIFT: Final = abi.constant("SET_SCHEDULER_SHIFT")
_SCOPED: Final = abi.constant("FRONTEND_SCOPED")
_SOURCE_RANGES: Final = abi.constant("FRONTEND_SOURCE_RANGES")
SERVING: Final = abi.constant("BACKEND_SERVING")
_LOCAL: Final = abi.constant("BACKEND_LOCAL")
_SERVING_LOCAL: Final = SERVING | _LOCAL
_pack_backend: Final = BACKEND.pack
_NODE_PORT: Final = abi.constant("NODE_ADDRESS_NODE_PORT")


# ---- backends ----------------------------------------------------------------------------------------------------


def encode_backend(backend: Backend, generation: int) -> bytes:
    """A Serving backend."""
    address = backend.address
    return _pack_backend(
        V4_MAPPED_PREFIX + address if len(address) == 4 else address,
        backend.port.to_bytes(2),
        backend.protocol,
        _SERVING_LOCAL if backend.local else SERVING,
        generation,
    )


def decode_backend(row: bytes | memoryview) -> tuple[Backend, int, bool]:
    """(backend, generation, serving)."""
    address, port, protocol, flags, generation = BACKEND.unpack(row)
    backend = Backend(from_v4_mapped(address), int.from_bytes(port), Protocol(protocol), bool(flags & _LOCAL))
    return backend, generation, bool(flags & SERVING)


# ---- sets --------------------------------------------------------------------------------------------------------

_set: Any = abi.ffi.new("union backend_set *")


def encode_set(row: SetRow, base: int, table_log2: int) -> int:
    """The 64-bit word of a set whose extent begins at slot `base`."""
    _set.base = base
    _set.count = len(row.backends)
    _set.table_log2 = table_log2
    _set.flags = IN_USE | (_DROP if row.on_empty else 0) | row.scheduler << _SCHEDULER_SHIFT
    word: int = _set.word
    return word


class SetWord:
    """A set's word, taken apart."""

    __slots__ = ("base", "count", "in_use", "on_empty", "scheduler", "table_log2")

    def __init__(self, word: int) -> None:
        _set.word = word
        flags = _set.flags
        self.base: int = _set.base
        self.count: int = _set.count
        self.table_log2: int = _set.table_log2
        self.in_use = bool(flags & IN_USE)
        self.on_empty = OnEmpty.DROP if flags & _DROP else OnEmpty.REJECT
        self.scheduler = Scheduler(flags >> _SCHEDULER_SHIFT)

    @property
    def members(self) -> int:
        """The first slot behind the Maglev table."""
        return self.base + (1 << self.table_log2 if self.table_log2 else 0)


def encode_set_name(key: SetKey) -> bytes:
    """Raises ValueError where a name is longer than Kubernetes allows."""
    name = key.service_port
    texts = [text.encode() for text in (name.service.namespace, name.service.name, name.port)]
    if max(map(len, texts)) > 63:
        raise ValueError(f"{name}: a name has more than 63 characters")
    return SET_NAME.pack(*texts, name.protocol, key.family, key.pool, 0)


def decode_set_name(row: bytes | memoryview) -> SetKey:
    """The inverse of `encode_set_name`."""
    namespace, service, port, protocol, family, pool, _ = SET_NAME.unpack(row)
    namespace, service, port = (text.rstrip(b"\0").decode() for text in (namespace, service, port))
    name = ServicePortName(ObjectName(namespace, service), port, Protocol(protocol))
    return SetKey(name, 4 if family == 4 else 6, Pool(pool))


# ---- frontends ---------------------------------------------------------------------------------------------------


def encode_frontend_key(frontend: Frontend) -> bytes:
    """The key in frontends4 or frontends6."""
    layout = FRONTEND_KEYS[frontend.family]
    return layout.pack(frontend.address, frontend.port.to_bytes(2), frontend.protocol, frontend.scope)


def decode_frontend_key(family: int, key: bytes | memoryview) -> Frontend:
    """The inverse of `encode_frontend_key`."""
    address, port, protocol, scope = FRONTEND_KEYS[family].unpack(key)
    return Frontend(Address(address), int.from_bytes(port), Protocol(protocol), Scope(scope))


def affinity_group(name: ServicePortName, family: Family) -> int:
    """What all frontends of a ServicePort share (rule 15), in one family: the backends of the other are none for its
    clients. A digest needs no allocation and outlives a restart."""
    return int.from_bytes(blake2b(f"{name}/v{family}".encode(), digest_size=8).digest(), "little")


def encode_frontend(row: FrontendRow, set_id: int, frontend_id: int) -> bytes:
    """The value in frontends4 or frontends6."""
    group = affinity_group(row.set.service_port, row.set.family) if row.affinity_timeout else 0
    flags = (_SCOPED if row.scoped else 0) | (_SOURCE_RANGES if row.source_ranges else 0)
    return FRONTEND.pack(set_id, frontend_id, group, row.affinity_timeout, row.kind, flags, row.masquerade, 0)


def decode_frontend(value: bytes | memoryview, sets: dict[int, SetKey]) -> tuple[FrontendRow, int]:
    """(row, frontend id); raises KeyError where the set is unknown."""
    set_id, frontend_id, _, timeout, kind, flags, masquerade, _ = FRONTEND.unpack(value)
    row = FrontendRow(sets[set_id], FrontendKind(kind), Masquerade(masquerade), timeout, bool(flags & _SCOPED))
    return row, frontend_id


# ---- node addresses ----------------------------------------------------------------------------------------------


def encode_node_address(key: NodeAddress) -> bytes:
    """The key in node_addresses."""
    return v4_mapped(key.address)


def encode_node_address_row(row: NodeAddressRow) -> bytes:
    """The value in node_addresses."""
    return NODE_ADDRESS.pack(_NODE_PORT if row.node_ports else 0)


def decode_node_address(key: bytes, value: bytes | memoryview) -> tuple[NodeAddress, NodeAddressRow]:
    """The inverse of the two above."""
    (flags,) = NODE_ADDRESS.unpack(value)
    return NodeAddress(from_v4_mapped(bytes(key))), NodeAddressRow(bool(flags & _NODE_PORT))
