"""Maps in the kernel, by row, in bulk and mapped."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from bpfproxy.datapath import libbpf
from bpfproxy.datapath.libbpf import ENOTSUPP
from bpfproxy.datapath.maps import NOEXIST, Map, Shape

HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH = 1, 2, 5, 6, 9
NO_PREALLOC = 1
MMAPABLE = 0x400


def make(kind: int, rows: int = 64, value_size: int = 8, flags: int = 0) -> Map:
    return Map.create("test", Shape(kind, 4, value_size, rows, flags))


@pytest.fixture(params=[True, False], ids=["batches", "row by row"])
def batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel's batches, and with a library whose batch calls answer as an older kernel does."""
    if not request.param:
        real = libbpf.lib()

        class Older:
            def __getattr__(self, name: str) -> object:
                if name.endswith("_batch") or name == "bpf_map_lookup_and_delete_elem":
                    return lambda *_: -ENOTSUPP
                return getattr(real, name)

        monkeypatch.setattr("bpfproxy.datapath.maps.lib", Older)


def keys(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}I", *numbers)


def values(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}Q", *numbers)


def numbers(map_: Map) -> dict[int, int]:
    return {struct.unpack("=I", key)[0]: struct.unpack("=Q", value)[0] for key, value in map_.items()}


def test_tells_its_shape() -> None:
    with make(HASH, flags=NO_PREALLOC) as map_:
        assert map_.name == "test"
        assert map_.shape == Shape(HASH, 4, 8, 64, NO_PREALLOC)
        assert str(map_.shape) == "hash, key 4 B, value 8 B, 64 rows, flags 0x1"


def test_rows() -> None:
    with make(HASH) as map_:
        assert map_.lookup(keys(1)) is None
        map_.update(keys(1), values(10))
        assert map_.lookup(keys(1)) == values(10)
        with pytest.raises(FileExistsError, match="map test: update"):
            map_.update(keys(1), values(11), NOEXIST)
        assert map_.delete(keys(1))
        assert not map_.delete(keys(1))


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("kind", [HASH, LRU_HASH])
def test_take(kind: int) -> None:
    with make(kind) as map_:
        map_.update(keys(1), values(10))
        assert map_.take(keys(1)) == values(10)
        assert map_.take(keys(1)) is None
        assert numbers(map_) == {}


@pytest.mark.parametrize(("key", "value"), [(b"123", bytes(8)), (bytes(4), bytes(9))])
def test_sizes_are_checked(key: bytes, value: bytes) -> None:
    with make(HASH) as map_, pytest.raises(ValueError, match="bytes expected"):
        map_.update(key, value)


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("kind", [HASH, ARRAY, LRU_HASH])
def test_bulk_write_and_read(kind: int) -> None:
    rows = 10_000 if kind == LRU_HASH else 1000  # it makes room before it is full
    with make(kind, rows) as map_:
        wanted = {number: number * 3 for number in range(1000)}
        assert map_.update_batch(keys(*wanted), values(*wanted.values()), 1000) == (1000, None)
        assert numbers(map_) == wanted
        sizes = [count for _, _, count in map_.batches(chunk=300)]
        assert sum(sizes) == 1000


@pytest.mark.usefixtures("batches")
def test_empty_map_and_empty_batches() -> None:
    with make(HASH) as map_:
        assert list(map_.items()) == []
        assert map_.update_batch(b"", b"", 0) == (0, None)
        assert map_.delete_batch(b"", 0) == 0


@pytest.mark.usefixtures("batches")
def test_a_full_map_tells_how_far_it_came() -> None:
    with make(HASH, rows=5, flags=NO_PREALLOC) as map_:
        done, error = map_.update_batch(keys(*range(8)), values(*range(8)), 8)
        assert done == 5
        assert error is not None
        assert error.errno == errno.E2BIG
        assert error.strerror == "map test: update: Argument list too long"
        assert numbers(map_) == {number: number for number in range(5)}
        # Nothing is written when the first row is refused.
        assert map_.update_batch(keys(9), values(9), 1).done == 0


@pytest.mark.usefixtures("batches")
def test_delete_passes_over_what_is_not_there() -> None:
    with make(HASH) as map_:
        map_.update_batch(keys(*range(10)), values(*range(10)), 10)
        assert map_.delete_batch(keys(77, 1, 2, 78, 79, 3, 80), 7) == 3
        assert sorted(numbers(map_)) == [0, 4, 5, 6, 7, 8, 9]


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("kind", [PERCPU_HASH, PERCPU_ARRAY])
def test_a_value_per_cpu(kind: int) -> None:
    cpus = libbpf.possible_cpus()
    with make(kind, rows=3, value_size=4) as map_:
        rows = {keys(key): b"".join(struct.pack("=I4x", 10 * key + cpu) for cpu in range(cpus)) for key in range(3)}
        assert map_.update_batch(b"".join(rows), b"".join(rows.values()), 3) == (3, None)
        assert dict(map_.items()) == rows
        assert map_.lookup_per_cpu(keys(2)) == [struct.pack("=I", 20 + cpu) for cpu in range(cpus)]
        map_.update(keys(2), b"abcd")
        assert map_.lookup_per_cpu(keys(2)) == [b"abcd"] * cpus


def test_zero() -> None:
    with make(PERCPU_ARRAY, rows=2) as map_:
        map_.update(keys(1), values(5))
        map_.zero(1)
        assert map_.lookup_per_cpu(keys(1)) == [values(0)] * libbpf.possible_cpus()


def test_mapped_rows_are_the_kernels() -> None:
    with make(ARRAY, rows=1000, value_size=24, flags=MMAPABLE) as map_:
        memory = map_.mmap()
        assert len(memory) == 24_000
        assert map_.mmap() is memory
        memory.cast("Q")[3 * 7 + 1] = 0x1122334455667788
        assert map_.lookup(keys(7)) == values(0, 0x1122334455667788, 0)
        map_.update(keys(999), values(1, 2, 3))
        assert memory[999 * 24 :] == values(1, 2, 3)


def test_rows_of_odd_size_lie_at_multiples_of_eight() -> None:
    with make(ARRAY, rows=3, value_size=12, flags=MMAPABLE) as map_:
        map_.update(keys(2), b"x" * 12)
        assert bytes(map_.mmap()[32:44]) == b"x" * 12


def test_only_some_maps_can_be_mapped() -> None:
    with make(HASH) as map_, pytest.raises(TypeError, match="was not made to be mapped"):
        map_.mmap()


def test_opens_a_pin(state: Path) -> None:
    path = state / "bpf" / "one"
    with make(HASH) as map_:
        libbpf.pin(map_.fd, path)
        map_.update(keys(1), values(2))
    with Map.open(path) as again:
        assert numbers(again) == {1: 2}
    with pytest.raises(FileNotFoundError, match="opening"):
        Map.open(state / "bpf" / "none")


def test_close_closes() -> None:
    map_ = make(HASH)
    fd = map_.fd
    map_.close()
    map_.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
