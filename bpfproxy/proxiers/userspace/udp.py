"""UDP: a session per client's socket, with a socket of its own towards one backend."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections import OrderedDict
from collections.abc import Collection
from typing import Any, Final

from bpfproxy.model.address import format_address, parse_address
from bpfproxy.model.frontend import Backend
from bpfproxy.proxiers.userspace.budget import Budget
from bpfproxy.proxiers.userspace.choice import Choice

_DATAGRAM: Final = 65535
_BURST: Final = 64
"""Datagrams that are read in a row, before others have their turn."""
_IP_PKTINFO: Final = 8
_IN_PKTINFO: Final = struct.Struct("=I4s4s")
_IN6_PKTINFO: Final = struct.Struct("=16sI")
_SWEEP: Final = 1.0
_TRIES: Final = 4
_LINK_LOCAL: Final = ipaddress.IPv6Network("fe80::/10")

Ancillary = tuple[int, int, bytes]


class _Session:
    """What a client's socket says to one of the node's addresses, and what comes back."""

    def __init__(self, backend: Backend, connection: socket.socket, now: float) -> None:
        self.backend = backend
        self.connection = connection
        self.asked = now
        """When the client last wrote."""
        self.used = now
        """When either side did."""


class UdpListener:
    """The listener of one frontend. A session that is idle for `idle` seconds is over."""

    def __init__(self, listener: socket.socket, choice: Choice, budget: Budget, idle: float) -> None:
        self._listener = listener
        self._choice = choice
        self._budget = budget
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._sessions: OrderedDict[tuple[Any, Ancillary], _Session] = OrderedDict()
        """By the client's address and the local one that it wrote to, which answers have to come from."""
        if listener.family == socket.AF_INET:
            listener.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        listener.setblocking(False)

    async def open(self) -> None:
        """Begin to receive."""
        self._loop.add_reader(self._listener, self._receive)
        self._sweeping = self._loop.call_later(_SWEEP, self._sweep)

    def close(self) -> None:
        """Receive no more; all sessions are over."""
        self._sweeping.cancel()
        self._loop.remove_reader(self._listener)
        for key in list(self._sessions):
            self._end(key)
        self._listener.close()

    def keep(self, backends: Collection[Backend]) -> None:
        """Sessions with any other backend are over (rule 16)."""
        for key, session in list(self._sessions.items()):
            if session.backend not in backends:
                self._end(key)

    def _receive(self) -> None:
        for _ in range(_BURST):
            try:
                data, ancillary, _, client = self._listener.recvmsg(_DATAGRAM, 128)
            except OSError:
                return
            local = _local(ancillary)
            if local is not None:
                self._forward(data, (client, local))

    def _forward(self, data: bytes, key: tuple[Any, Ancillary]) -> None:
        session = self._sessions.get(key) or self._begin(key)
        if session is None:
            return
        session.asked = session.used = self._loop.time()
        self._sessions.move_to_end(key)
        try:
            session.connection.send(data)
        except BlockingIOError:
            return  # as on a full link
        except OSError:
            self._end(key)  # nobody is there: the next datagram tries another

    def _begin(self, key: tuple[Any, Ancillary]) -> _Session | None:
        client = parse_address(key[0][0].partition("%")[0])
        order = self._choice.order(client)
        if not order or not self._budget.take_session():
            return None
        for backend in order[:_TRIES]:
            try:
                connection = self._connect(backend)
            except OSError:  # no route, or no descriptor
                continue
            self._choice.took(client, backend)
            session = self._sessions[key] = _Session(backend, connection, self._loop.time())
            self._loop.add_reader(connection, self._answer, key, session)
            return session
        self._budget.sessions -= 1
        return None

    def _connect(self, backend: Backend) -> socket.socket:
        connection = socket.socket(self._listener.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            connection.connect((format_address(backend.address), backend.port))
        except OSError:
            connection.close()
            raise
        return connection

    def _answer(self, key: tuple[Any, Ancillary], session: _Session) -> None:
        for _ in range(_BURST):
            try:
                data = session.connection.recv(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                self._end(key)
                return
            session.used = self._loop.time()
            with contextlib.suppress(OSError):
                self._listener.sendmsg([data], [key[1]], 0, key[0])

    def _end(self, key: tuple[Any, Ancillary]) -> None:
        session = self._sessions.pop(key, None)
        if session is not None:
            self._loop.remove_reader(session.connection)
            session.connection.close()
            self._budget.sessions -= 1

    def _sweep(self) -> None:
        limit = self._loop.time() - self._idle
        for key, session in list(self._sessions.items()):  # in the order in which clients wrote
            if session.asked > limit:
                break
            if session.used <= limit:
                self._end(key)
        self._sweeping = self._loop.call_later(_SWEEP, self._sweep)


def _local(ancillary: list[Ancillary]) -> Ancillary | None:
    """The local address of a datagram, as the ancillary data that make an answer come from it."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            _, local, _ = _IN_PKTINFO.unpack(data)
            return level, kind, _IN_PKTINFO.pack(0, local, bytes(4))
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            local, device = _IN6_PKTINFO.unpack(data)
            # Only a link-local address needs its device; any other may be answered by another way.
            return level, kind, _IN6_PKTINFO.pack(local, device if ipaddress.IPv6Address(local) in _LINK_LOCAL else 0)
    return None
