"""Destroys UDP sockets that are connected to a backend that is gone: their owners' next call fails (recv: ECONNABORTED,
send: EDESTADDRREQ), and they connect again.

sock_diag(7) shows and destroys the sockets of one network namespace, so the walk enters the namespace of every process
in a cgroup and below.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bpfproxy.datapath.libbpf import os_error
from bpfproxy.datapath.namespaces import enter_network, in_thread

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_SOCK_DESTROY: Final = 21
_REQUEST: Final = 1
_ACK: Final = 4
_DUMP: Final = 0x300
_ERROR: Final = 2
_DONE: Final = 3
_CONNECTED: Final = 1 << 1  # TCP_ESTABLISHED, which a connected UDP socket shows
_RECEIVE_SIZE: Final = 1 << 16

_HEADER: Final = struct.Struct("=IHHII")
_QUERY: Final = struct.Struct("=BBxxI48s")
"""inet_diag_req_v2: family, protocol, states, socket."""
_SOCKET: Final = struct.Struct("=2s2s16s16sIII")
"""inet_diag_sockid: source port, destination port, their addresses, interface, lower and upper half of the cookie."""
_FAMILY_SIZE: Final = 4
"""Bytes in inet_diag_msg before its inet_diag_sockid."""

_OWN: Final = Path("/proc/thread-self/ns/net")
_V4_MAPPED: Final = bytes(10) + b"\xff\xff"

Endpoint = tuple[bytes, int]
"""(address of 16 bytes, IPv4 as ::ffff:a.b.c.d; port)."""


@dataclass(slots=True)
class Destroyed:
    """What a walk did."""

    sockets: int = 0
    namespaces: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Namespaces, processes or sockets that were left out, by reason."""


def destroy_udp(cgroup: Path, wanted: Mapping[int, Endpoint]) -> Destroyed:
    """Destroy the connected UDP sockets with the cookies `wanted`, among those of the processes in `cgroup` and below.

    A socket that is no longer connected to the endpoint that stands beside its cookie is left alone. What cannot be
    reached is counted in `skipped`: without CAP_SYS_ADMIN that is every namespace but the caller's own.
    """
    result = Destroyed()
    if wanted:
        in_thread(lambda: _walk(cgroup, wanted, result))
    return result


def is_supported() -> bool:
    """Whether this kernel destroys sockets: tries it on one of its own. Raises OSError without CAP_NET_ADMIN."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim:
        victim.bind(("127.0.0.1", 0))
        victim.connect(victim.getsockname())
        port = victim.getsockname()[1].to_bytes(2, "big")
        loopback = socket.inet_aton("127.0.0.1").ljust(16, b"\0")
        identity = _SOCKET.pack(port, port, loopback, loopback, 0, 0xFFFFFFFF, 0xFFFFFFFF)  # any cookie
        with _Diag() as diag:
            try:
                diag.destroy(socket.AF_INET, identity)
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    return False
                raise
    return True


def _walk(cgroup: Path, wanted: Mapping[int, Endpoint], result: Destroyed) -> None:
    """Runs in a thread of its own, whose namespace changes."""
    here = _OWN.stat().st_ino
    for inode, path in _namespaces(cgroup, result).items():
        try:
            if inode != here:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    enter_network(fd)
                finally:
                    os.close(fd)
                here = inode
        except FileNotFoundError:
            continue  # its process has just ended
        except PermissionError:
            result.skipped["entering a network namespace needs CAP_SYS_ADMIN"] += 1
            continue
        result.namespaces += 1
        try:
            _destroy_here(wanted, result)
        except OSError as error:
            result.skipped[error.strerror or str(error)] += 1


def _namespaces(cgroup: Path, result: Destroyed) -> dict[int, Path]:
    """Distinct network namespaces of the processes in a cgroup and below, by inode; the caller's own first."""
    found = {_OWN.stat().st_ino: _OWN}
    for pid in _processes(cgroup):
        if not pid:
            result.skipped["processes of another pid namespace cannot be seen"] += 1
            continue
        path = Path(f"/proc/{pid}/ns/net")
        try:
            found.setdefault(path.stat().st_ino, path)
        except FileNotFoundError:
            continue
        except PermissionError:
            result.skipped["looking at another process needs CAP_SYS_PTRACE"] += 1
    return found


def _processes(cgroup: Path) -> Iterator[int]:
    for directory, _, _ in os.walk(cgroup):
        with contextlib.suppress(OSError):  # a cgroup that has just been removed
            yield from map(int, Path(directory, "cgroup.procs").read_text().split())


def _destroy_here(wanted: Mapping[int, Endpoint], result: Destroyed) -> None:
    with _Diag() as diag:
        for family in (socket.AF_INET, socket.AF_INET6):
            victims = [
                identity for cookie, endpoint, identity in diag.sockets(family) if wanted.get(cookie) == endpoint
            ]
            for identity in victims:
                try:
                    diag.destroy(family, identity)
                    result.sockets += 1
                except OSError as error:
                    if error.errno != errno.ENOENT:  # closed meanwhile
                        result.skipped[error.strerror or str(error)] += 1


class _Diag:
    """A sock_diag socket in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)

    def __enter__(self) -> _Diag:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def sockets(self, family: int) -> Iterator[tuple[int, Endpoint, bytes]]:
        """Connected UDP sockets: (cookie, destination, inet_diag_sockid)."""
        self._send(_SOCK_DIAG_BY_FAMILY, _DUMP, family, bytes(_SOCKET.size))
        for body in self._replies():
            identity = body[_FAMILY_SIZE : _FAMILY_SIZE + _SOCKET.size]
            _, port, _, address, _, low, high = _SOCKET.unpack(identity)
            if family == socket.AF_INET:
                address = _V4_MAPPED + address[:4]
            yield high << 32 | low, (address, int.from_bytes(port, "big")), identity

    def destroy(self, family: int, identity: bytes) -> None:
        """Raises OSError: ENOENT if there is no such socket, EOPNOTSUPP on a kernel without INET_DIAG_DESTROY."""
        self._send(_SOCK_DESTROY, _ACK, family, identity)
        for _ in self._replies():
            pass

    def _send(self, kind: int, flags: int, family: int, identity: bytes) -> None:
        query = _QUERY.pack(family, socket.IPPROTO_UDP, _CONNECTED, identity)
        self._socket.send(_HEADER.pack(_HEADER.size + len(query), kind, flags | _REQUEST, 0, 0) + query)

    def _replies(self) -> Iterator[bytes]:
        """Bodies of the messages up to the end of the dump, or to the acknowledgement."""
        while True:
            data = self._socket.recv(_RECEIVE_SIZE)
            while data:
                length, kind, _, _, _ = _HEADER.unpack_from(data)
                body, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                if kind == _ERROR:
                    code = -int.from_bytes(body[:4], sys.byteorder, signed=True)
                    if code:
                        raise os_error(code, "sock_diag")
                    return
                if kind == _DONE:
                    return
                yield body
