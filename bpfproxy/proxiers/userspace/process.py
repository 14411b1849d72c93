"""The process that relays, as its agent sees it: found, started, asked, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from bpfproxy.errors import DatapathError
from bpfproxy.model.frontend import Frontend
from bpfproxy.proxiers.userspace import wire
from bpfproxy.proxiers.userspace.rows import PortalRow

_START: Final = 10.0
_ANSWER: Final = 60.0
"""Seconds."""
_PEER: Final = struct.Struct("3i")

T = TypeVar("T")


class Process:
    """The one of this version, under `directory`. It is started when it is first needed, and again if it has ended.

    `limit`: how many connections and sessions it may carry; `idle`: seconds after which a UDP session is over.
    """

    def __init__(self, directory: Path, limit: int, idle: float) -> None:
        self._directory = directory
        self._path = directory / f"{wire.VERSION}.sock"
        self._arguments = (str(limit), str(idle))
        self._connection: socket.socket | None = None

    def portals(self) -> list[wire.Portal]:
        """What is served."""
        return self._ask(wire.Ask(), list[wire.Portal])

    def put(self, rows: Mapping[Frontend, PortalRow]) -> list[wire.Portal]:
        """Serve these; where their listeners are, in the same order, or why they could not be had."""
        if not rows:
            return []
        request = wire.Put([wire.Portal(frontend, row) for frontend, row in rows.items()])
        return self._ask(request, list[wire.Portal])

    def take(self, frontends: Iterable[Frontend]) -> None:
        """Serve these no longer."""
        if gone := list(frontends):
            self._ask(wire.Take(gone), wire.Load)

    def load(self) -> wire.Load:
        """What it carries."""
        return self._ask(wire.Weigh(), wire.Load)

    def retire_others(self) -> None:
        """Those of other versions take no more, and end when no connection is left."""
        for path in self._directory.glob("*.sock"):
            if path != self._path:
                with contextlib.suppress(OSError), _connect(path) as connection:
                    wire.ask(connection, wire.Retire(), wire.Load)

    def others_drained(self) -> bool:
        """Whether those of other versions carry no connection any more."""
        for path in self._directory.glob("*.sock"):
            if path != self._path:
                with contextlib.suppress(OSError), _connect(path) as connection:
                    if wire.ask(connection, wire.Weigh(), wire.Load).connections:
                        return False
        return True

    def close(self) -> None:
        """Let go of it; it goes on."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def _ask(self, request: wire.Request, answer: type[T]) -> T:
        """Raises DatapathError. If the process has ended, one that serves nothing takes its place: what it should
        serve is then read and written anew."""
        try:
            if self._connection is None:
                self._connection = self._open()
            return wire.ask(self._connection, request, answer)
        except OSError as error:
            self.close()
            raise DatapathError(f"the relaying process does not answer: {error}") from error

    def _open(self) -> socket.socket:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return _connect(self._path)
        self._path.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "bpfproxy.proxiers.userspace", str(self._path), *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + _START
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return _connect(self._path)
            time.sleep(0.01)
        raise ConnectionRefusedError(f"it did not start (exit status {process.poll()})")


def end_all(directory: Path) -> list[str]:
    """End all processes under `directory`; returns which."""
    ended = []
    for path in sorted(directory.glob("*.sock")):
        with contextlib.suppress(OSError):
            with _connect(path) as connection:
                pid, _, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            _terminate(pid)
            ended.append(f"process {pid}")
        path.unlink(missing_ok=True)
    return ended


def _terminate(pid: int) -> None:
    """End a process and wait for it; the descriptor keeps its number from being another's."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        for last_resort in (signal.SIGKILL, None):
            end = time.monotonic() + _START
            while time.monotonic() < end and _alive(pid):
                time.sleep(0.01)
            if last_resort and _alive(pid):
                signal.pidfd_send_signal(fd, last_resort)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


def _alive(pid: int) -> bool:
    """Whether it runs: one that has ended and nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_ANSWER)
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection
