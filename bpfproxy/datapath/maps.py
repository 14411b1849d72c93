"""BPF maps over a descriptor. Bulk calls take and give buffers; keys and values are bytes laid out as abi.h says."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from bpfproxy.datapath import libbpf
from bpfproxy.datapath.libbpf import ffi, lib

ANY: Final = 0
NOEXIST: Final = 1
EXIST: Final = 2

_ARRAY: Final = 2
_PERCPU_ARRAY: Final = 6
_PERCPU: Final = frozenset({5, _PERCPU_ARRAY, 10, 21})
"""Types with a value per CPU: hash, array, LRU hash, cgroup storage."""
_MMAPABLE: Final = 0x400
_CHUNK: Final = 65536

Buffer = bytes | bytearray | memoryview


class Shape(NamedTuple):
    """What makes two maps interchangeable."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int

    def __str__(self) -> str:
        return (
            f"{libbpf.map_type_name(self.type)}, key {self.key_size} B, value {self.value_size} B, "
            f"{self.max_entries} rows, flags {self.flags:#x}"
        )


class Batch(NamedTuple):
    """How far a bulk call came: `done` rows, then `error` (of the row at that index) or None if all are done."""

    done: int
    error: OSError | None


class Map:
    """A map. Owns its descriptor. Failing calls raise OSError with the map's name."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        try:
            info = libbpf.info(fd, "map")
        except OSError:
            os.close(fd)
            raise
        self.name = libbpf.text(info.name)
        self.id: int = info.id
        self.shape = Shape(info.type, info.key_size, info.value_size, info.max_entries, info.map_flags)
        self.max_entries: int = info.max_entries
        self.is_per_cpu = info.type in _PERCPU
        self._stride = -(-info.value_size // 8) * 8
        """Bytes from one value to the next, in a mapped array and among the values of one row of a per-CPU map."""
        self.row_size: int = self._stride * libbpf.possible_cpus() if self.is_per_cpu else info.value_size
        self._row = ffi.new("char[]", max(self.row_size, 1))
        self._memory: memoryview | None = None

    @classmethod
    def open(cls, path: Path) -> Map:
        """The map that is pinned at `path`; raises FileNotFoundError and other OSErrors."""
        return cls(libbpf.open_pin(path))

    @classmethod
    def create(cls, name: str, shape: Shape) -> Map:
        """A new map, gone with its last descriptor or pin."""
        options = ffi.new("struct bpf_map_create_opts *")
        options.sz = ffi.sizeof("struct bpf_map_create_opts")
        options.map_flags = shape.flags
        fd = lib().bpf_map_create(
            shape.type, name[:15].encode(), shape.key_size, shape.value_size, shape.max_entries, options
        )
        return cls(libbpf.check(fd, f"creating map {name}"))

    def close(self) -> None:
        """Close the descriptor; the map lives on where it is pinned, and mapped memory while it is referred to."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._memory = None

    def __enter__(self) -> Map:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Map({self.name}, {self.shape})"

    # ---- one row -------------------------------------------------------------------------------------------------

    def lookup(self, key: Buffer) -> bytes | None:
        """The value, or None if there is no such row. For a per-CPU map: all values, each padded to 8 bytes."""
        result = lib().bpf_map_lookup_elem(self.fd, self._key(key), self._row)
        if result == -errno.ENOENT:
            return None
        self._check(result, "lookup")
        return bytes(ffi.buffer(self._row, self.row_size))

    def lookup_per_cpu(self, key: Buffer) -> list[bytes]:
        """The values of a row, one per possible CPU; empty if there is no such row."""
        return self.split_per_cpu(self.lookup(key) or b"")

    def split_per_cpu(self, value: bytes) -> list[bytes]:
        """The values, one per possible CPU, in a row of a per-CPU map as `lookup` and `items` give it."""
        size = self.shape.value_size
        return [value[start : start + size] for start in range(0, len(value), self._stride)]

    def update(self, key: Buffer, value: Buffer, flags: int = ANY) -> None:
        """Write a row. In a per-CPU map every CPU gets `value`."""
        self._expect(len(value), self.shape.value_size, "value")
        if self.is_per_cpu:
            value = bytes(value).ljust(self._stride, b"\0") * libbpf.possible_cpus()
        result = lib().bpf_map_update_elem(self.fd, self._key(key), ffi.from_buffer(value), flags)
        self._check(result, "update")

    def delete(self, key: Buffer) -> bool:
        """Delete a row; returns whether it was there."""
        result = lib().bpf_map_delete_elem(self.fd, self._key(key))
        if result == -errno.ENOENT:
            return False
        self._check(result, "delete")
        return True

    def take(self, key: Buffer) -> bytes | None:
        """Delete a row and return the value that it had then, None if it was not there. Kernels before 5.14 can do
        that in two steps alone: what a program writes between them is lost."""
        result = lib().bpf_map_lookup_and_delete_elem(self.fd, self._key(key), self._row)
        if result in (-libbpf.ENOTSUPP, -errno.EINVAL):
            value = self.lookup(key)
            return value if value is not None and self.delete(key) else None
        if result == -errno.ENOENT:
            return None
        self._check(result, "take")
        return bytes(ffi.buffer(self._row, self.row_size))

    def zero(self, index: int) -> None:
        """Set a row of an array to zero, on all CPUs."""
        zeros = bytes(self.row_size)
        result = lib().bpf_map_update_elem(self.fd, ffi.new("uint32_t *", index), ffi.from_buffer(zeros), ANY)
        self._check(result, "update")

    # ---- many rows -----------------------------------------------------------------------------------------------

    def update_batch(self, keys: Buffer, values: Buffer, count: int) -> Batch:
        """Write `count` rows from packed keys and values, in their order, until one is refused.

        In a per-CPU map a value is as `lookup` gives it.
        """
        self._expect(len(keys), count * self.shape.key_size, "keys")
        self._expect(len(values), count * self.row_size, "values")
        if not count:
            return Batch(0, None)
        done = ffi.new("uint32_t *", count)
        result = lib().bpf_map_update_batch(
            self.fd, ffi.from_buffer(keys), ffi.from_buffer(values), done, _batch_options()
        )
        if result == -libbpf.ENOTSUPP:
            return self._update_each(keys, values, count)
        return self._batch(result, done[0], count, "update")

    def delete_batch(self, keys: Buffer, count: int) -> int:
        """Delete `count` rows; returns how many of them were there."""
        size = self.shape.key_size
        self._expect(len(keys), count * size, "keys")
        view = memoryview(keys)
        start = deleted = 0
        while start < count:
            left = count - start
            done = ffi.new("uint32_t *", left)
            result = lib().bpf_map_delete_batch(self.fd, ffi.from_buffer(view[start * size :]), done, _batch_options())
            if result == -libbpf.ENOTSUPP:
                return deleted + sum(self.delete(view[at * size : (at + 1) * size]) for at in range(start, count))
            batch = self._batch(result, done[0], left, "delete")
            deleted += batch.done
            start += batch.done + 1  # the row that stopped the kernel is not there
            if batch.error is not None and batch.error.errno != errno.ENOENT:
                raise batch.error
        return deleted

    def batches(self, chunk: int = _CHUNK) -> Iterator[tuple[memoryview, memoryview, int]]:
        """All rows as (packed keys, packed values, count); the buffers hold until the next step.

        Rows that come, go or change meanwhile may be missed or seen in either state.
        """
        key_size = self.shape.key_size
        chunk = max(1, min(chunk, self.max_entries))
        keys, values = bytearray(chunk * key_size), bytearray(chunk * self.row_size)
        token = ffi.new("char[]", max(key_size, 8))
        count = ffi.new("uint32_t *")
        position = ffi.NULL
        while True:
            count[0] = chunk
            result = lib().bpf_map_lookup_batch(
                self.fd, position, token, ffi.from_buffer(keys), ffi.from_buffer(values), count, _batch_options()
            )
            if result == -libbpf.ENOTSUPP and position == ffi.NULL:
                yield from self._each(chunk)
                return
            if result == -errno.ENOSPC:  # a hash bucket has more rows than there is room
                chunk *= 2
                keys, values = bytearray(chunk * key_size), bytearray(chunk * self.row_size)
                continue
            if result != -errno.ENOENT:
                self._check(result, "lookup")
            found = count[0]
            if found:
                yield memoryview(keys)[: found * key_size], memoryview(values)[: found * self.row_size], found
            if result:
                return
            position = token

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows; values of per-CPU maps are as `lookup` gives them."""
        key_size, row_size = self.shape.key_size, self.row_size
        for keys, values, count in self.batches(min(_CHUNK, max(1, (1 << 20) // max(row_size, 1)))):
            all_keys, all_values = bytes(keys), bytes(values)
            for at in range(count):
                yield all_keys[at * key_size : (at + 1) * key_size], all_values[at * row_size : (at + 1) * row_size]

    def mmap(self) -> memoryview:
        """The rows of a BPF_F_MMAPABLE array as writable bytes, each row at a multiple of 8.

        Cast it to "Q" for aligned 64-bit stores, which a program sees whole. Every call gives the same memory.
        """
        if self._memory is None:
            if not self.shape.flags & _MMAPABLE:
                raise TypeError(f"map {self.name} was not made to be mapped")
            length = self.max_entries * self._stride
            pages = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
            try:
                self._memory = memoryview(mmap.mmap(self.fd, pages, mmap.MAP_SHARED))[:length]
            except OSError as error:
                raise libbpf.os_error(error.errno or 0, f"map {self.name}: mmap") from error
        return self._memory

    # ---- inside --------------------------------------------------------------------------------------------------

    def _each(self, chunk: int) -> Iterator[tuple[memoryview, memoryview, int]]:
        """`batches` on kernels that have none for this type."""
        keys, values, count = bytearray(), bytearray(), 0
        for key in self._keys():
            value = self.lookup(key)
            if value is None:
                continue
            keys += key
            values += value
            count += 1
            if count == chunk:
                yield memoryview(keys), memoryview(values), count
                keys, values, count = bytearray(), bytearray(), 0
        if count:
            yield memoryview(keys), memoryview(values), count

    def _keys(self) -> Iterator[bytes]:
        if self.shape.type in (_ARRAY, _PERCPU_ARRAY):
            for index in range(self.max_entries):
                yield bytes(ffi.buffer(ffi.new("uint32_t *", index)))
            return
        size = self.shape.key_size
        key, following = ffi.NULL, ffi.new("char[]", size)
        # A key that is deleted meanwhile sends the kernel back to the first one: the bound ends that.
        for _ in range(2 * self.max_entries):
            result = lib().bpf_map_get_next_key(self.fd, key, following)
            if result == -errno.ENOENT:
                return
            self._check(result, "next key")
            found = bytes(ffi.buffer(following))
            yield found
            key = ffi.new("char[]", found)

    def _update_each(self, keys: Buffer, values: Buffer, count: int) -> Batch:
        key_size, row_size = self.shape.key_size, self.row_size
        all_keys, all_values = memoryview(keys), memoryview(values)
        for at in range(count):
            key = ffi.from_buffer(all_keys[at * key_size : (at + 1) * key_size])
            value = ffi.from_buffer(all_values[at * row_size : (at + 1) * row_size])
            result = lib().bpf_map_update_elem(self.fd, key, value, ANY)
            if result:
                return Batch(at, libbpf.os_error(-result, f"map {self.name}: update"))
        return Batch(count, None)

    def _batch(self, result: int, done: int, count: int, call: str) -> Batch:
        if not result:
            return Batch(done, None)
        # An error that comes before the first row leaves the count as it was.
        return Batch(done if done < count else 0, libbpf.os_error(-result, f"map {self.name}: {call}"))

    def _key(self, key: Buffer) -> Any:
        self._expect(len(key), self.shape.key_size, "key")
        return ffi.from_buffer(key)

    def _expect(self, found: int, expected: int, what: str) -> None:
        if found != expected:
            raise ValueError(f"map {self.name}: {what} of {expected} bytes expected, not {found}")

    def _check(self, result: int, call: str) -> None:
        if result < 0:
            raise libbpf.os_error(-result, f"map {self.name}: {call}")


def _batch_options() -> Any:
    options = ffi.new("struct bpf_map_batch_opts *")
    options.sz = ffi.sizeof("struct bpf_map_batch_opts")
    return options
