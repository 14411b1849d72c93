"""TCP: two connections, and bytes carried between them. Each half closes on its own, as the two ends do."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Final, cast

from bpfproxy.model.address import Address, format_address, parse_address
from bpfproxy.proxiers.userspace.budget import Budget
from bpfproxy.proxiers.userspace.choice import Choice

_PATIENCE: Final = (0.25, 0.5, 1.0, 2.0)
"""Seconds that a backend is given to take a connection, round by round."""
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset."""


class Half(asyncio.Protocol):
    """One of the two connections: what it receives goes to its `peer`."""

    def __init__(self, ended: Callable[[], None] = lambda: None) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: Half | None = None
        self._ended = ended
        # A transport does not begin to read paused: what comes before there is a peer waits here.
        self._early = b""
        self._early_end = False

    @property
    def gone(self) -> bool:
        """Whether the connection has ended."""
        return self.transport is None or self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast(asyncio.Transport, transport)

    def join(self, peer: Half) -> None:
        """Carry bytes from here to `peer` from now on."""
        self.peer = peer
        if self._early:
            self.data_received(self._early)
            self._early = b""
        if self._early_end:
            self.eof_received()
        if self.transport and not self.gone:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.peer and self.peer.transport:
            self.peer.transport.write(data)
        elif self.peer is None and self.transport:
            self._early += data
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """The other direction stays open."""
        self._early_end = self.peer is None
        if self.peer and self.peer.transport and self.peer.transport.can_write_eof():
            self.peer.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        """This end does not take more: read no more from the other."""
        if self.peer and self.peer.transport:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        """See `pause_writing`."""
        if self.peer and self.peer.transport and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Both directions are over, or this end is gone: so is the other."""
        self._ended()
        if self.peer and self.peer.transport:
            if error:
                reset(self.peer.transport)
            else:
                self.peer.transport.close()
        self.transport = self.peer = None


def reset(transport: asyncio.Transport) -> None:
    """Close so that the other end is told."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


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
        self._server = await loop.create_server(self._accept, sock=self._listener, backlog=1024)

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
        """Find a backend that takes the connection: one after another, with more and more patience."""
        if client.transport is None:
            return
        address = _address(client.transport)
        loop = asyncio.get_running_loop()
        order = self._choice.order(address)
        for patience in _PATIENCE:
            for backend in order:
                server = Half()
                try:
                    async with asyncio.timeout(patience):
                        await loop.create_connection(lambda: server, format_address(backend.address), backend.port)  # noqa: B023
                except OSError:  # a timeout is one
                    continue
                if client.gone:
                    if server.transport:
                        server.transport.close()
                    return
                self._choice.took(address, backend)
                server.join(client)
                client.join(server)
                return
        if (transport := client.transport) is not None:
            reset(transport)


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


def _address(transport: asyncio.Transport) -> Address:
    return parse_address(transport.get_extra_info("peername")[0].partition("%")[0])
