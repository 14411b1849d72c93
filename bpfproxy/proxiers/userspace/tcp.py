"""TCP: two connections, and bytes carried between them. Each half closes on its own, as the two ends do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Final, cast

from bpfproxy.model.address import ANY4, Address, format_address, parse_address
from bpfproxy.proxiers.userspace.budget import Budget
from bpfproxy.proxiers.userspace.choice import Choice

_PATIENCE: Final = (0.25, 0.5, 1.0, 2.0)
"""Seconds that a backend is given to take a connection, round by round."""
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset."""
_DEADLINE: Final = 20.0
"""Seconds after which no further backend is tried."""
_KEEP_ALIVE: Final = 30
"""Seconds of silence after which, and between which, an end is asked whether it is there."""
_BURST: Final = 16
_BACKLOG: Final = 4096
_CHUNK: Final = 1 << 16
_BUFFER: Final = memoryview(bytearray(_CHUNK))
"""One for all: what is read is written on, or copied, before anything else is read."""


class Half(asyncio.BufferedProtocol):
    """One of the two connections: what it receives goes to its peer.

    What the peer does not take at once is held, and nothing more is read until it is gone: at most `_CHUNK` bytes in
    each direction.
    """

    def __init__(self, ended: Callable[[], None] = lambda: None) -> None:
        self.transport: asyncio.Transport | None = None
        self._peer: Half | None = None
        self._ended = ended
        # A transport does not begin to read paused: what comes before there is a peer waits here.
        self._early = b""
        self._said_all = False
        """It will send no more."""

    @property
    def gone(self) -> bool:
        """Whether the connection has ended."""
        return self.transport is None or self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(0)
        keep_alive(self.transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`."""
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        data = bytes(_BUFFER[:nbytes])
        if self._peer and self._peer.transport:
            self._peer.transport.write(data)
        elif self._peer is None and self.transport:
            self._early = data
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """The other direction stays open, unless that is over, too."""
        self._said_all = True
        if self._peer is None:
            return True
        return self._end_of_what_peer_gets()

    def _end_of_what_peer_gets(self) -> bool:
        """Whether the connection goes on."""
        peer = self._peer
        if peer is None or peer.transport is None:
            return False
        peer.transport.write_eof()
        return not peer._said_all

    def pause_writing(self) -> None:
        """This end does not take more: read no more from the other."""
        if self._peer and self._peer.transport:
            self._peer.transport.pause_reading()

    def resume_writing(self) -> None:
        """See `pause_writing`."""
        if self._peer and self._peer.transport:
            self._peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Both directions are over, or this end is gone: so is the other, after it has got what is left."""
        self._ended()
        if self._peer and self._peer.transport:
            if error:
                reset(self._peer.transport)
            else:
                self._peer.transport.close()
        self.transport = self._peer = None

    def _begin(self) -> None:
        """Carry bytes to the peer from now on. Reading is resumed first: what the peer does not take pauses it."""
        if self.transport:
            self.transport.resume_reading()
        if self._early and self._peer and self._peer.transport:
            self._peer.transport.write(self._early)
        self._early = b""
        if self._said_all and not self._end_of_what_peer_gets() and self.transport:
            self.transport.close()

    def join(self, peer: Half) -> None:
        """Carry bytes from each to the other from now on; if one has gone meanwhile, the other goes, too."""
        if self.gone or peer.gone:
            for half in (self, peer):
                if half.transport:
                    reset(half.transport)
            return
        self._peer, peer._peer = peer, self
        self._begin()
        peer._begin()


def reset(transport: asyncio.Transport) -> None:
    """Close so that the other end is told."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def keep_alive(transport: asyncio.Transport) -> None:
    """Learn of an end that went without a word: its connection would count for ever."""
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):  # one that has been reset already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_ALIVE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEP_ALIVE)


class TcpListener:
    """The listener of one frontend."""

    def __init__(self, listener: socket.socket, choice: Choice, budget: Budget) -> None:
        self._listener = listener
        self._choice = choice
        self._budget = budget
        self._connecting: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        # asyncio takes its backlog for how often to accept in a row, also when each try fails for want of descriptors.
        self._server = await loop.create_server(self._accept, sock=self._listener, backlog=_BURST)
        self._listener.listen(_BACKLOG)

    def close(self) -> None:
        """Accept no more; connections run out."""
        if self._server:
            self._server.close()

    def _accept(self) -> Half:
        return _Client(self._began, self._budget)

    def _began(self, client: _Client) -> None:
        task = asyncio.create_task(self._connect(client))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, client: _Client) -> None:
        server = None
        try:
            async with asyncio.timeout(_DEADLINE):
                server = await self._find(client)
        except TimeoutError:
            pass
        finally:  # whatever happens: nobody waits for nothing
            if server is not None:
                server.join(client)
            elif client.transport is not None:
                reset(client.transport)

    async def _find(self, client: _Client) -> Half | None:
        """A backend that takes the connection: one after another, with more and more patience."""
        loop = asyncio.get_running_loop()
        address = _address(client)
        order = self._choice.order(address)
        for patience in _PATIENCE:
            for backend in order:
                if client.gone:
                    return None
                server = Half()
                try:
                    async with asyncio.timeout(patience):
                        await loop.create_connection(lambda: server, format_address(backend.address), backend.port)  # noqa: B023
                except OSError:  # a timeout is one
                    continue
                self._choice.took(address, backend)
                return server
        return None


class _Client(Half):
    """The connection of a client, which counts."""

    def __init__(self, began: Callable[[_Client], None], budget: Budget) -> None:
        super().__init__(self._over)
        self._began = began
        self._budget = budget
        self._counted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._counted = self._budget.take_connection()
        if self._counted:
            self._began(self)
        else:
            reset(cast(asyncio.Transport, transport))

    def _over(self) -> None:
        if self._counted:
            self._budget.connections -= 1


def _address(client: Half) -> Address:
    peer = client.transport.get_extra_info("peername") if client.transport else None
    return parse_address(peer[0].partition("%")[0]) if peer else ANY4
