"""Maglev tables, filled natively (bpf/maglev.c)."""

from __future__ import annotations

import errno
import functools
from array import array
from collections.abc import Sequence
from typing import Any, Final

import cffi

from bpfproxy.datapath import files
from bpfproxy.model.address import v4_mapped
from bpfproxy.model.frontend import Backend

SLOTS_PER_BACKEND: Final = 64
"""At the least, up to `MAX_LOG2`: the shares of two backends differ by a few per cent then."""
MIN_LOG2: Final = 8
MAX_LOG2: Final = 17

_KEY_SIZE: Final = 19

_ffi = cffi.FFI()
_ffi.cdef(
    """
    void maglev_identities(uint64_t *identities, const uint8_t *keys, uint32_t size, uint32_t count);
    int maglev_fill(uint32_t *table, uint32_t log2_size, const uint64_t *identities, const uint32_t *ids,
                    uint32_t count);
    """
)


def table_log2(count: int) -> int:
    """The size, as a power of two, of the table for `count` backends; 0, for no table, where there is no choice."""
    if count <= 1:
        return 0
    return min(max((SLOTS_PER_BACKEND * count - 1).bit_length(), MIN_LOG2), MAX_LOG2)


def fill(backends: Sequence[Backend], ids: Sequence[int], log2_size: int) -> bytes:
    """The 2^`log2_size` slots of the table, each the id of its backend: 32 bits in the machine's byte order.

    `ids[i]` stands for `backends[i]`. Which backend has a slot depends on the set of backends alone, not on their
    order and ids. Raises ValueError if there is no backend, or more than slots, or the table is too large.
    """
    count = len(backends)
    if len(ids) != count:
        raise ValueError(f"expected {count} ids, not {len(ids)}")
    if not 0 <= log2_size <= MAX_LOG2:
        raise ValueError(f"expected a table of at most 2^{MAX_LOG2} slots for the backends, not 2^{log2_size}")
    keys = b"".join([v4_mapped(b.address) + (b.port << 8 | b.protocol).to_bytes(3, "big") for b in backends])
    identities = _ffi.new("uint64_t[]", count)
    table = bytearray(4 << log2_size)
    library = _library()
    library.maglev_identities(identities, _ffi.from_buffer("uint8_t[]", keys), _KEY_SIZE, count)
    status = library.maglev_fill(
        _ffi.from_buffer("uint32_t[]", table),
        log2_size,
        identities,
        _ffi.from_buffer("uint32_t[]", array("I", ids)),
        count,
    )
    if status == -errno.ENOMEM:
        raise MemoryError
    if status:
        raise ValueError(f"a Maglev table of 2^{log2_size} slots cannot hold {count} backends")
    return bytes(table)


@functools.cache
def _library() -> Any:
    return _ffi.dlopen(str(files.built("libmaglev.so")))
