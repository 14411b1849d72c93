"""The cookie of a network namespace, by which programs tell the node's sockets from those of pods."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from typing import Final, NamedTuple

from bpfproxy.datapath import cgroup, features, libbpf
from bpfproxy.datapath.attach import CgroupTarget
from bpfproxy.datapath.libbpf import ffi, lib
from bpfproxy.datapath.maps import Map, Shape
from bpfproxy.errors import UnsupportedError

_SO_COOKIE: Final = 57
_SO_NETNS_COOKIE: Final = 71
_ARRAY: Final = 2
_SECTION: Final = "cgroup/connect4"
_MAP_UPDATE: Final = 2
_MAP_FD: Final = 1
"""Marks the immediate value of an instruction as the descriptor of a map."""


class _Program(NamedTuple):
    """Implements `attach.Attachable`."""

    name: str
    fd: int
    attach_type: int


def current() -> int:
    """That of this thread's network namespace, as `bpf_get_netns_cookie(ctx)` gives it to programs.

    Raises UnsupportedError and OSError where neither the kernel nor a program says it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return _option(probe, _SO_NETNS_COOKIE)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
        return by_program(probe)  # before Linux 5.14


def by_program(probe: socket.socket) -> int:
    """The same, of a UDP socket over IPv4: a program that is attached for a moment sees that socket, and no other one,
    connect."""
    features.require_capabilities()
    with Map.create("netns_cookie", Shape(_ARRAY, 4, 8, 1, 0)) as answer:
        program = _load(_option(probe, _SO_COOKIE), answer.fd)
        try:
            link = CgroupTarget(cgroup.mount_point()).link(program)
            try:
                with contextlib.suppress(OSError):  # loopback may be down: that comes after the program
                    probe.connect(("127.0.0.1", 9))  # nothing is sent
            finally:
                os.close(link)
        finally:
            os.close(program.fd)
        found = int.from_bytes(answer.lookup(bytes(4)) or b"", sys.byteorder)
    if not found:
        raise UnsupportedError("a program at the root of cgroup v2 does not see this process")
    return found


def _option(probe: socket.socket, number: int) -> int:
    return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, number, 8), sys.byteorder)


def _load(cookie: int, map_fd: int) -> _Program:
    """A program that puts the namespace's cookie into a map for the socket with this cookie, and lets all pass."""
    code = [
        _insn(0xBF, 6, 1),  # r6 = context
        _insn(0x85, imm=features.HELPERS["bpf_get_socket_cookie"]),
        *_constant(1, cookie),
        _insn(0x5D, 0, 1, 12),  # if r0 != r1: to the end
        _insn(0xBF, 1, 6),  # r1 = context
        _insn(0x85, imm=features.HELPERS["bpf_get_netns_cookie"]),
        _insn(0x7B, 10, 0, -8),  # *(u64 *)(fp - 8) = r0
        _insn(0x62, 10, 0, -12),  # *(u32 *)(fp - 12) = 0
        *_constant(1, map_fd, _MAP_FD),
        _insn(0xBF, 2, 10),
        _insn(0x07, 2, imm=-12),  # r2 = fp - 12
        _insn(0xBF, 3, 10),
        _insn(0x07, 3, imm=-8),  # r3 = fp - 8
        _insn(0xB7, 4),  # r4 = 0
        _insn(0x85, imm=_MAP_UPDATE),
        _insn(0xB7, 0, imm=1),  # r0 = 1
        _insn(0x95),
    ]
    kind, attach_type = libbpf.program_type(_SECTION)
    options = ffi.new("struct bpf_prog_load_opts *", {"expected_attach_type": attach_type})
    options.sz = ffi.sizeof("struct bpf_prog_load_opts")
    name = "netns_cookie"
    fd = lib().bpf_prog_load(kind, name.encode(), b"GPL", ffi.new("struct bpf_insn[]", code), len(code), options)
    return _Program(name, libbpf.check(fd, f"loading the program {name}"), attach_type)


def _insn(code: int, to: int = 0, of: int = 0, off: int = 0, imm: int = 0) -> dict[str, int]:
    """One instruction; `to` and `of` are registers."""
    return {"code": code, "registers": to | of << 4, "off": off, "imm": imm}


def _constant(register: int, value: int, kind: int = 0) -> list[dict[str, int]]:
    """A constant of 64 bits takes two instructions."""
    low, high = struct.unpack("<ii", struct.pack("<Q", value))
    return [_insn(0x18, register, kind, imm=low), _insn(0, imm=high)]
