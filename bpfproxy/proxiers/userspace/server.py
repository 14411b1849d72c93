"""The process that relays. It outlives its agent, so that an agent may come and go without a connection noticing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import weakref
from pathlib import Path
from typing import Any, Final

from bpfproxy.model.frontend import Frontend, ServicePortName
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.userspace import wire
from bpfproxy.proxiers.userspace.budget import Budget
from bpfproxy.proxiers.userspace.choice import Affinities, Choice
from bpfproxy.proxiers.userspace.rows import PortalRow
from bpfproxy.proxiers.userspace.tcp import TcpListener
from bpfproxy.proxiers.userspace.udp import UdpListener

log = logging.getLogger(__name__)

_ANY: Final = {4: "0.0.0.0", 6: "::"}
_SILENCE: Final = 10.0
_FILES_MAX: Final = Path("/proc/sys/fs/nr_open")
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class Server:
    """Serves portals, as an agent says through a socket."""

    def __init__(self, budget: Budget, udp_idle: float) -> None:
        self._budget = budget
        self._udp_idle = udp_idle
        self._portals: dict[Frontend, _Open] = {}
        self._affinities: weakref.WeakValueDictionary[tuple[ServicePortName, int], Affinities] = (
            weakref.WeakValueDictionary()
        )
        self._retired = False
        self._busy = asyncio.Lock()
        self.done = asyncio.Event()
        """It may end: nothing is left to do."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One agent's connection; one that does not speak as agreed is closed."""
        try:
            while (request := await wire.receive(reader)) is not None:
                async with self._busy:
                    answer = await self._handle(request)
                writer.write(wire.encode(answer))
                await writer.drain()
        except ConnectionError:
            pass
        except ValueError as error:
            log.warning("userspace: a request that is none: %s", error)
        finally:
            writer.close()

    async def _handle(self, request: wire.Request) -> object:
        match request:
            case wire.Put(portals):
                self._retired = False  # an agent of this version is back
                return [await self._put(portal.frontend, portal.row) for portal in portals]
            case wire.Take(frontends):
                for frontend in frontends:
                    self._take(frontend)
            case wire.Ask():
                return [wire.Portal(frontend, one.row, one.port) for frontend, one in self._portals.items()]
            case wire.Retire():
                for frontend in list(self._portals):
                    self._take(frontend)
                self._retired = True
        return wire.Load(self._budget.connections, self._budget.sessions, self._budget.refused)

    async def _put(self, frontend: Frontend, row: PortalRow) -> wire.Portal:
        portal = self._portals.get(frontend)
        try:
            if portal is None:
                portal = _Open(self._affinities_of(row.service_port, frontend.family))
                await portal.set(frontend, row, self._budget, self._udp_idle)
                self._portals[frontend] = portal
            else:
                portal.belongs(self._affinities_of(row.service_port, frontend.family))
                await portal.set(frontend, row, self._budget, self._udp_idle)
        except OSError as error:
            return wire.Portal(frontend, row, 0, f"no listener can be had: {error.strerror}")
        return wire.Portal(frontend, row, portal.port)

    def _take(self, frontend: Frontend) -> None:
        portal = self._portals.pop(frontend, None)
        if portal:
            portal.close()

    def _affinities_of(self, name: ServicePortName, family: int) -> Affinities:
        return self._affinities.setdefault((name, family), Affinities())

    async def run(self) -> None:
        """Until it is told to end, or has been retired and carries nothing any more."""
        while not (self._retired and not self._budget.connections):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.done.wait(), 1.0)
                return


class _Open:
    """A frontend that is served."""

    def __init__(self, affinities: Affinities) -> None:
        self.port = 0
        self._choice = Choice(affinities)
        self._listener: TcpListener | UdpListener | None = None

    def belongs(self, affinities: Affinities) -> None:
        """To the ServicePort whose affinities these are."""
        self._choice.affinities = affinities

    async def set(self, frontend: Frontend, row: PortalRow, budget: Budget, udp_idle: float) -> None:
        """Serve as `row` says from now on. Raises OSError."""
        if row.backends and self._listener is None:
            await self._open(frontend, budget, udp_idle)
        self.row = row
        self._choice.set(row.backends, row.affinity_timeout)
        if isinstance(self._listener, UdpListener):
            self._listener.keep({*row.backends, *row.draining})
        if not row.backends:
            self.close()

    async def _open(self, frontend: Frontend, budget: Budget, udp_idle: float) -> None:
        tcp = frontend.protocol is Protocol.TCP
        listener = socket.socket(_FAMILIES[frontend.family], socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        try:
            if frontend.family == 6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((_ANY[frontend.family], 0))
            made: TcpListener | UdpListener
            if tcp:
                made = TcpListener(listener, self._choice, budget)
            else:
                made = UdpListener(listener, self._choice, budget, udp_idle)
            await made.open()
        except BaseException:
            listener.close()
            raise
        self._listener, self.port = made, listener.getsockname()[1]

    def close(self) -> None:
        """Take no more."""
        if self._listener:
            self._listener.close()
        self._listener, self.port = None, 0


class _Complaints:
    """Says what went wrong in a callback, once in a while: with no descriptor left, each try to accept fails."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._silent_until = 0.0

    def __call__(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self._loop.time() >= self._silent_until:
            self._silent_until = self._loop.time() + _SILENCE
            log.error("userspace: %s: %r", context["message"], context.get("exception"))


async def run(path: Path, limit: int, udp_idle: float) -> None:
    """Serve agents that connect to the socket at `path`, which is made; it is gone at the end."""
    server = Server(Budget(limit), udp_idle)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_Complaints(loop))
    loop.add_signal_handler(signal.SIGTERM, server.done.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the agent
    control = await asyncio.start_unix_server(server.serve, path)
    path.chmod(0o600)
    try:
        await server.run()
    finally:
        control.close()
        path.unlink(missing_ok=True)


def main(path: str, limit: str, udp_idle: str) -> None:
    """Run the process: with the path of its socket, how much it may carry, and after how many seconds a UDP session
    is over."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # beyond that needs CAP_SYS_RESOURCE
        most = max(most, int(_FILES_MAX.read_text()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(run(Path(path), int(limit), float(udp_idle)))
