"""What the agent and the process that relays say to each other: over a stream socket, each message its length in four
bytes (big-endian), then msgpack. Every request has one answer."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from bpfproxy.model.frontend import Frontend
from bpfproxy.proxiers.userspace.rows import PortalRow

_LENGTH: Final = struct.Struct(">I")
_LIMIT: Final = 1 << 30

T = TypeVar("T")


class Portal(Struct, frozen=True):
    """A frontend that is served. `port`: where its listener is, 0 if it has none because it has no backends."""

    frontend: Frontend
    row: PortalRow
    port: int = 0
    error: str = ""
    """In an answer: why it could not be opened."""


class Load(Struct, frozen=True):
    """What the process carries."""

    connections: int = 0
    sessions: int = 0
    """Of UDP."""
    refused: int = 0
    """Connections and sessions that were turned away because there were too many."""


class Put(Struct, frozen=True, tag=True):
    """Serve these; answered by `list[Portal]`, in their order."""

    portals: list[Portal]


class Take(Struct, frozen=True, tag=True):
    """Serve these no longer: listeners close, TCP connections run out; answered by `Load`."""

    frontends: list[Frontend]


class Ask(Struct, frozen=True, tag=True):
    """What is served; answered by `list[Portal]`."""


class Weigh(Struct, frozen=True, tag=True):
    """Answered by `Load`."""


class Retire(Struct, frozen=True, tag=True):
    """Close all listeners, and end when no connection is left; answered by `Load`."""


Request = Put | Take | Ask | Weigh | Retire

VERSION: Final = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()[:12]
"""Of this package: an agent talks to a process of its own version, and retires others."""


def encode(message: object) -> bytes:
    """A message as it goes over the socket."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


async def receive(reader: asyncio.StreamReader) -> Request | None:
    """The next request; None at the end of the stream. Raises ValueError for anything else."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > _LIMIT:
            raise ValueError(f"{length} bytes")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        request: Request = msgspec.msgpack.decode(body, type=Request)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return request


def ask(connection: socket.socket, request: Request, answer: type[T]) -> T:
    """Send `request` and wait for its answer. Raises OSError."""
    connection.sendall(encode(request))
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
    result: T = msgspec.msgpack.decode(_read(connection, length), type=answer)
    return result


def _read(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise ConnectionResetError("the relaying process closed the connection")
        parts += part
    return bytes(parts)
