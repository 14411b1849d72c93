"""Servers that say who they are and whom they saw, all in one thread.

A server answers each line (TCP), each GET (HTTP) or each datagram (UDP) by one JSON object:
{"place", "port", "peer": [address, port], "echo"}. Padding around what a line or datagram says is not echoed. Large
transfers have threads of their own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any

from bpfproxy.lab.peer import transfer

_LIMIT = 65536


class Servers:
    """The servers of one place."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def serve(self, protocol: str, family: int, port: int) -> dict[str, Any]:
        """Listen on all addresses of a family; `protocol` is `tcp` (which HTTP is, too) or `udp`."""
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("" if family == 4 else "::", port))
        if protocol == "tcp":
            sock.listen(1024)
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, self._accept if protocol == "tcp" else self._datagram)
        if not self._thread.is_alive():
            self._thread.start()
        return {}

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                try:
                    key.data(key.fileobj)
                except OSError:  # the client went away
                    if key.data == self._stream:
                        self._drop(key.fileobj)  # type: ignore[arg-type]

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(connection, selectors.EVENT_READ, self._stream)

    def _stream(self, connection: socket.socket) -> None:
        data = connection.recv(_LIMIT)
        if not data:
            self._drop(connection)
        elif data.startswith(b"GET "):
            body = self._said(connection, connection.getpeername(), "")
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
        elif data.startswith(transfer.COMMAND):
            self._selector.unregister(connection)
            answer = functools.partial(self._answer, connection, connection.getpeername())
            threading.Thread(target=_transfer, args=(connection, data, answer), daemon=True).start()
        else:
            for line in data.splitlines():
                connection.sendall(self._said(connection, connection.getpeername(), line.decode()) + b"\n")

    def _datagram(self, sock: socket.socket) -> None:
        data, peer = sock.recvfrom(_LIMIT)
        sock.sendto(self._said(sock, peer, data.decode()), peer)

    def _said(self, sock: socket.socket, peer: tuple[Any, ...], line: str) -> bytes:
        return json.dumps(self._answer(sock, peer, line.strip())).encode()

    def _answer(self, sock: socket.socket, peer: tuple[Any, ...], echo: str) -> dict[str, Any]:
        return {"place": self._place, "port": sock.getsockname()[1], "peer": peer[:2], "echo": echo}

    def _drop(self, connection: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        connection.close()


def _transfer(connection: socket.socket, begun: bytes, answer: Callable[[str], dict[str, Any]]) -> None:
    with contextlib.suppress(OSError):  # the client went away
        transfer.serve(connection, begun, answer)
