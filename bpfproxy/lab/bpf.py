"""libbpf's own calls: which bpf_links are attached to cgroups, as an outside view of the kernel, and a program that
lets everything pass."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

_BPF_LINK_TYPE_CGROUP = 3
_BPF_PROG_TYPE_XDP = 6


@dataclass(frozen=True)
class CgroupLink:
    """A bpf_link on a cgroup. `cgroup_id` is the inode number of the cgroup's directory, 0 once that is removed."""

    id: int
    program: str
    cgroup_id: int


@cache
def _libbpf() -> ctypes.CDLL:
    return ctypes.CDLL("libbpf.so.1", use_errno=True)


def _ids(next_id: str) -> Iterator[int]:
    found = ctypes.c_uint32(0)
    while getattr(_libbpf(), next_id)(found, ctypes.byref(found)) == 0:
        yield found.value


def _info(open_by_id: str, at: int, size: int) -> bytes | None:
    """The first `size` bytes of the kernel's info structure, None if the object is gone by now."""
    fd = getattr(_libbpf(), open_by_id)(ctypes.c_uint32(at))
    if fd < 0:
        return None
    try:
        info = ctypes.create_string_buffer(size)
        length = ctypes.c_uint32(size)
        return info.raw if _libbpf().bpf_obj_get_info_by_fd(fd, info, ctypes.byref(length)) == 0 else None
    finally:
        os.close(fd)


def _program_name(program_id: int) -> str:
    # struct bpf_prog_info: the name of 16 bytes follows 64 bytes of ids, lengths, pointers and times.
    info = _info("bpf_prog_get_fd_by_id", program_id, 80)
    return info[64:80].split(b"\0")[0].decode() if info else "?"


@contextlib.contextmanager
def pass_program() -> Iterator[int]:
    """The descriptor of an XDP program that lets everything pass. Raises OSError."""
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # r0 = XDP_PASS; exit
    fd = _libbpf().bpf_prog_load(_BPF_PROG_TYPE_XDP, b"lab_pass", b"GPL", code, ctypes.c_size_t(2), None)
    if fd < 0:
        raise OSError(-fd, f"an XDP program cannot be loaded: {os.strerror(-fd)}")
    try:
        yield fd
    finally:
        os.close(fd)


def cgroup_links() -> Iterator[CgroupLink]:
    """All bpf_links on cgroups. Needs CAP_SYS_ADMIN; without it there are none."""
    for link_id in _ids("bpf_link_get_next_id"):
        # struct bpf_link_info: type, id, prog_id, padding, then for a cgroup its 64-bit id.
        info = _info("bpf_link_get_fd_by_id", link_id, 32)
        if info is None:
            continue
        kind, at, program_id, _, cgroup_id = struct.unpack_from("=IIIIQ", info)
        if kind == _BPF_LINK_TYPE_CGROUP:
            yield CgroupLink(at, _program_name(program_id), cgroup_id)
