"""Requests from a place: one answer per request, with what the client itself could see of its peer."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count as counter
from typing import Any

from bpfproxy.lab.peer import refusal

_LIMIT = 65536
_IP_MTU, _IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _IPV6_MTU = 14, 10, 23, 24
_PMTUDISC_DO = 2
_tokens = counter()


def error_name(error: OSError) -> str:
    """`ECONNREFUSED` and the like; `TIMEOUT` if nothing came in time, `CLOSED` for a connection that ended."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return "TIMEOUT"
    return errno.errorcode.get(error.errno or 0, str(error) or type(error).__name__)


class RefusedError(ConnectionRefusedError):
    """With how it came about: by an ICMP error that the socket was told of, else as `by` says."""

    def __init__(self, sock: socket.socket, by: str) -> None:
        super().__init__(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        self.how = refusal.told(sock) or {"by": by}


def failure(error: OSError) -> dict[str, Any]:
    """The outcome of a request that failed."""
    return {"error": error_name(error), **(error.how if isinstance(error, RefusedError) else {})}


class Flow:
    """One socket of a client and the way in which it talks.

    `protocol`: `http`, `tcp`, `udp` (a connected socket) or `udp-unconnected`. `family` is that of the socket: a
    v6 one that goes to an IPv4 address uses the v4-mapped form. `source` is an address and port to bind to.
    `whole`: what is too long for the path is not cut into fragments, but an error. `told`: ICMP errors are asked for.
    """

    def __init__(
        self,
        protocol: str,
        to: tuple[str, int],
        family: int,
        timeout: float = 2.0,
        source: tuple[str, int] | None = None,
        whole: bool = False,
        told: bool = False,
    ) -> None:
        self.protocol = protocol
        self.timeout = timeout
        self.told = told
        self.family = family
        self.turn_to(to)
        kind = socket.SOCK_STREAM if protocol in ("http", "tcp") else socket.SOCK_DGRAM
        self.socket = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind)
        try:
            self.socket.settimeout(timeout)
            if whole and family == 4:
                self.socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
            elif whole:
                self.socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
            if told:
                refusal.ask(self.socket)
            if source:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind(tuple(source))
            if protocol != "udp-unconnected":
                self.connect()
        except BaseException:
            self.socket.close()
            raise

    def turn_to(self, to: tuple[str, int]) -> None:
        """Where connect() and the requests of an unconnected socket go from now on."""
        self.to = (to[0] if self.family == 4 or ":" in to[0] else f"::ffff:{to[0]}", to[1])

    def connect(self) -> None:
        """Connect, or connect again (UDP). Raises OSError, RefusedError if the flow is `told` how."""
        if not self.told:
            self.socket.connect(self.to)
            return
        self.socket.setblocking(False)
        code, by = self.socket.connect_ex(self.to), "hook"
        if code == errno.EINPROGRESS:
            code, by = self._connected(), "reset"
        if code == errno.ECONNREFUSED:
            raise RefusedError(self.socket, by)
        if code:
            raise OSError(code, os.strerror(code))
        if self.protocol != "udp":
            refusal.ask(self.socket, on=False)  # else errors that pass would break the connection
        self.socket.settimeout(self.timeout)

    def _connected(self) -> int:
        """Wait until a connection stands or does not; the error's number."""
        poll = select.poll()
        poll.register(self.socket, select.POLLOUT)
        if not poll.poll(self.timeout * 1000):
            raise TimeoutError
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def mtu(self) -> int:
        """MTU of the path, as the kernel knows it; of connected sockets."""
        if self.family == 4:
            return self.socket.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        return self.socket.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)

    def exchange(self, size: int = 0) -> dict[str, Any]:
        """Send one request, padded to `size` bytes, and read its answer: {"reply": the server's, "peer": whom this
        side talked to}.

        Raises OSError; ConnectionResetError too if the answer is to another request, RefusedError if the flow is
        `told` how.
        """
        try:
            return self._exchange(size)
        except ConnectionRefusedError:
            if self.told:
                raise RefusedError(self.socket, "hook") from None
            raise

    def _exchange(self, size: int) -> dict[str, Any]:
        token = str(next(_tokens))
        request = token.ljust(size).encode()
        peer: tuple[Any, ...]
        match self.protocol:
            case "udp-unconnected":
                self.socket.sendto(request, self.to)
                data, peer = self.socket.recvfrom(_LIMIT)
            case "udp":
                self.socket.send(request)
                data, peer = self.socket.recvfrom(_LIMIT)
                if peer[:2] != self.socket.getpeername()[:2]:
                    raise ConnectionResetError(f"recvfrom says {peer}, getpeername {self.socket.getpeername()}")
            case "tcp":
                self.socket.sendall(request + b"\n")
                data, peer = self._read_until(b"\n"), self.socket.getpeername()
            case "http":
                token = ""
                self.socket.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")
                head, _, data = self._read_until(b"}").partition(b"\r\n\r\n")
                peer = self.socket.getpeername()
                if not head.startswith(b"HTTP/1.1 200 "):
                    raise ConnectionResetError(f"HTTP said {head[:40]!r}")
        reply = json.loads(data)
        if reply["echo"] != token:
            raise ConnectionResetError(f"the answer is to another request: {reply}")
        return {"reply": reply, "peer": peer[:2]}

    def _read_until(self, end: bytes) -> bytes:
        data = b""
        while not data.endswith(end):
            more = self.socket.recv(_LIMIT)
            if not more:
                raise ConnectionResetError("CLOSED")
            data += more
        return data

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def attempt(flow: dict[str, Any], requests: int = 1) -> list[dict[str, Any]]:
    """Open a flow, make some requests on it and close it; an error is the result of each request that it spoils."""
    results: list[dict[str, Any]] = []
    began = time.monotonic()
    try:
        opened = Flow(**flow)
    except OSError as error:
        return [{**failure(error), "seconds": time.monotonic() - began}] * requests
    try:
        for _ in range(requests):
            try:
                result = opened.exchange()
            except OSError as error:
                result = failure(error)
            results.append({**result, "seconds": time.monotonic() - began})
            began = time.monotonic()
    finally:
        opened.close()
    return results


def requests(
    flow: dict[str, Any], sockets: int = 1, per_socket: int = 1, together: bool = False, most_timeouts: int = 0
) -> list[dict[str, Any]]:
    """`sockets` flows with `per_socket` requests each, after each other or all at once; results in their order. Those
    after each other end with the one that reaches `most_timeouts`, unless that is 0."""
    if not together:
        done: list[dict[str, Any]] = []
        for _ in range(sockets):
            done += attempt(flow, per_socket)
            if most_timeouts and sum(one.get("error") == "TIMEOUT" for one in done) >= most_timeouts:
                break
        return done
    with ThreadPoolExecutor(sockets) as threads:
        results = threads.map(attempt, [flow] * sockets, [per_socket] * sockets)
        return [result for each in results for result in each]


def bind(protocol: str, family: int, address: str, port: int) -> str:
    """Bind a socket and close it; returns "" or the error's name."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind) as sock:
        try:
            sock.bind((address, port))
        except OSError as error:
            return error_name(error)
    return ""


class Sockets:
    """Flows that stay open between commands, by name."""

    def __init__(self) -> None:
        self._flows: dict[str, Flow] = {}

    def names(self) -> list[str]:
        """Flows that are open."""
        return list(self._flows)

    def open(self, name: str, flow: dict[str, Any]) -> str:
        """Open a flow; returns "" or the error's name."""
        if name in self._flows:
            raise ValueError(f"{name} is open already")
        try:
            self._flows[name] = Flow(**flow)
        except OSError as error:
            return error_name(error)
        return ""

    def exchange(self, name: str, to: tuple[str, int] | None, reconnect: bool, size: int) -> dict[str, Any]:
        """One request of `size` bytes on an open flow, to another address if there is one, after a new connect() if
        `reconnect`."""
        flow = self._flows[name]
        if to:
            flow.turn_to(to)
        try:
            if reconnect:
                flow.connect()
            return flow.exchange(size)
        except OSError as error:
            return {"error": error_name(error)}

    def mtu(self, name: str) -> int:
        """The path's MTU, as an open flow knows it."""
        return self._flows[name].mtu()

    def listen(self, name: str) -> str:
        """Wait for a datagram that nobody asked for; returns the name of the error that came instead, or ""."""
        try:
            self._flows[name].socket.recv(_LIMIT)
        except OSError as error:
            return error_name(error)
        return ""

    def close(self, name: str) -> str:
        """Close a flow."""
        self._flows.pop(name).close()
        return ""
