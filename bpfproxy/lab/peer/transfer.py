"""A large transfer over one TCP connection: some bytes to the server, as many back, compared by their digests.

The client sends `TRANSFER SIZE` on a line and then its bytes; the server answers with bytes of its own and one line of
JSON: {"place", "port", "peer", "echo": the digest of what came in, "sent": the digest of what it has sent}.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import time
from collections.abc import Callable
from typing import Any

from bpfproxy.lab.peer.client import Flow, error_name

COMMAND = b"TRANSFER "
_PIECE = 1 << 20
_PATIENCE = 30.0
"""Seconds that a server waits for more of a transfer."""


def transfer(flow: dict[str, Any], size: int) -> dict[str, Any]:
    """Send `size` bytes and receive as many; the outcome of a request, and more: whether both arrived as they were
    sent, seconds, and the path MTU as this side's kernel knows it at the end."""
    began = time.monotonic()
    try:
        opened = Flow(**flow)
    except OSError as error:
        return {"error": error_name(error)}
    try:
        content = _content(size)
        opened.socket.sendall(COMMAND + f"{size}\n".encode())
        opened.socket.sendall(content)
        rest, received = _receive(opened.socket, b"", size)
        reply = json.loads(_line(opened.socket, rest)[0])
        intact = reply["echo"] == _digest(content) and reply.pop("sent") == received
        return {
            "reply": reply,
            "peer": opened.socket.getpeername()[:2],
            "intact": intact,
            "mtu": opened.mtu(),
            "seconds": time.monotonic() - began,
        }
    except OSError as error:
        return {"error": error_name(error), "mtu": opened.mtu()}
    finally:
        opened.close()


def serve(connection: socket.socket, begun: bytes, answer: Callable[[str], dict[str, Any]]) -> None:
    """The server's side of a transfer of which `begun` has been read; closes the connection. `answer` says who the
    server is and whom it sees."""
    connection.settimeout(_PATIENCE)
    with connection:
        head, rest = _line(connection, begun)
        size = int(head.removeprefix(COMMAND))
        rest, received = _receive(connection, rest, size)
        content = _content(size)
        connection.sendall(content)
        connection.sendall(json.dumps(answer(received) | {"sent": _digest(content)}).encode() + b"\n")


def _content(size: int) -> bytes:
    """Bytes that nobody else sends, and no two parts of which are alike."""
    return random.randbytes(size)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _receive(connection: socket.socket, begun: bytes, size: int) -> tuple[bytes, str]:
    """What came beyond `size` bytes, and the digest of those."""
    digest = hashlib.sha256(begun[:size])
    rest, missing = begun[size:], size - len(begun[:size])
    while missing:
        piece = _more(connection)
        digest.update(piece[:missing])
        rest, missing = piece[missing:], missing - len(piece[:missing])
    return rest, digest.hexdigest()


def _line(connection: socket.socket, begun: bytes) -> tuple[bytes, bytes]:
    """One line, and what came beyond it."""
    while b"\n" not in begun:
        begun += _more(connection)
    line, _, rest = begun.partition(b"\n")
    return line, rest


def _more(connection: socket.socket) -> bytes:
    piece = connection.recv(_PIECE)
    if not piece:
        raise ConnectionResetError("CLOSED")
    return piece
