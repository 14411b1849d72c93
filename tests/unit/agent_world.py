"""A world for agents: simulated kernels, and sources that a test speaks through."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

from bpfproxy.agent import Agent
from bpfproxy.config import Settings
from bpfproxy.errors import InputError, UnsupportedError
from bpfproxy.lock import StateLock
from bpfproxy.model.address import Address, parse_address
from bpfproxy.model.device import NetworkState
from bpfproxy.model.event import ObjectKey, Update
from bpfproxy.model.frontend import Frontend
from bpfproxy.model.service import Node, ObjectName, Protocol, Service, ServicePort
from bpfproxy.proxiers.base import Proxier
from bpfproxy.runner import Backoff
from tests.unit.simproxier import Kernel, SimProxier

DEADLINE = 10.0
T = TypeVar("T")


def service(name: str, ip: str, **more: Any) -> Service:
    ports = (ServicePort("", Protocol.TCP, 80),)
    return Service(ObjectName("ns", name), ports, cluster_ips=(parse_address(ip),), **more)


WEB, DNS = service("web", "172.30.0.1"), service("dns", "172.30.0.2")
WEB_IP = Frontend(parse_address("172.30.0.1"), 80, Protocol.TCP)
DNS_IP = Frontend(parse_address("172.30.0.2"), 80, Protocol.TCP)
HERE = parse_address("192.0.2.1")
LATER = parse_address("192.0.2.2")


class Events(logging.Handler):
    """What the agent says, as fields, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self.past: list[dict[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = dict(word.partition("=")[::2] for word in shlex.split(record.getMessage()))
        fields["level"] = record.levelname
        self.loop.call_soon_threadsafe(self.queue.put_nowait, fields)

    async def next(self, event: str, **wanted: str) -> dict[str, str]:
        """The next event of this name and with these fields; those before it are passed over."""
        async with asyncio.timeout(DEADLINE):
            while True:
                fields = await self.queue.get()
                self.past.append(fields)
                if fields.get("event") == event and wanted.items() <= fields.items():
                    return fields

    def count(self, event: str) -> int:
        return sum(fields.get("event") == event for fields in self.past)


class Voice(Generic[T]):
    """A source that says what a test puts into its queue."""

    def __init__(
        self, queue: asyncio.Queue[T | Exception], refused: Callable[[InputError], None] | None = None
    ) -> None:
        self.queue = queue
        self.refused = refused

    async def run(self, sink: Callable[[T], None]) -> None:
        while True:
            item = await self.queue.get()
            if isinstance(item, InputError) and self.refused:
                self.refused(item)
            elif isinstance(item, Exception):
                raise item
            else:
                sink(item)


class World:
    """The parts of an agent: one simulated proxier, and sources that a test speaks through."""

    def __init__(self, state_dir: Path) -> None:
        self.settings = Settings(acceleration="auto", state_dir=state_dir, node_name="n1", min_sync_period=0.0)
        self.proxier = SimProxier("ebpf", {})
        self.proxiers = {"ebpf": self.proxier, "iptables": SimProxier("iptables", {})}
        self.objects: asyncio.Queue[Update | Exception] = asyncio.Queue()
        self.addresses: asyncio.Queue[frozenset[Address] | Exception] = asyncio.Queue()
        self.networks: asyncio.Queue[NetworkState | Exception] = asyncio.Queue()
        self.closed = False
        self.cannot_open: Exception | None = None

    def lock(self) -> contextlib.AbstractContextManager[object]:
        return StateLock(self.settings.state_dir)

    def open_proxier(self, mode: str) -> Proxier:
        if self.cannot_open:
            raise self.cannot_open
        if mode not in self.proxiers:
            raise UnsupportedError("not in this kernel")
        return self.proxiers[mode]

    def modes_present(self) -> Iterable[str]:
        return [mode for mode, proxier in self.proxiers.items() if proxier.kernel]

    def cleanup(self, mode: str) -> list[str]:
        kernel = self.proxiers[mode].kernel
        removed = [str(key) for key in kernel]
        kernel.clear()
        return removed

    def node_addresses(self) -> Iterable[Address]:
        return [HERE]

    def network(self) -> NetworkState:
        return NetworkState(route_generation=1)

    def object_source(self, refused: Callable[[InputError], None]) -> Voice[Update]:
        return Voice(self.objects, refused)

    def address_source(self) -> Voice[frozenset[Address]]:
        return Voice(self.addresses)

    def network_source(self) -> Voice[NetworkState]:
        return Voice(self.networks)

    def say(self, *objects: Service | Node, removed: tuple[ObjectKey, ...] = (), complete: bool = True) -> None:
        self.objects.put_nowait(Update(tuple(objects), removed, complete))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[Agent, Events]]:
        """An agent at work; it is stopped at the end."""
        events, logger = Events(), logging.getLogger("bpfproxy")
        level = logger.level
        logger.addHandler(events)
        logger.setLevel(logging.DEBUG)
        agent = Agent(self.settings, self, lambda: Backoff(0.001, 0.01))
        task = asyncio.create_task(agent.run())
        try:
            yield agent, events
        finally:
            agent.stop()
            try:
                async with asyncio.timeout(DEADLINE):
                    await task
            finally:
                logger.removeHandler(events)
                logger.setLevel(level)


def assert_served(kernel: Kernel, by: Kernel) -> None:
    """What has gone from one is in the other."""
    assert {WEB_IP, DNS_IP} <= kernel.keys() | by.keys()
