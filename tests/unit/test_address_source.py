"""The node's addresses, over real netlink in a network namespace of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bpfproxy.model.address import Address, format_address, parse_address
from bpfproxy.sources.addresses import AddressSource, node_addresses

DEADLINE = 10.0


def ip(*commands: str) -> None:
    """Carry out `ip` commands in the namespace of this thread, in one go."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True, capture_output=True)


@pytest.fixture(autouse=True)
def _links(namespace: str) -> None:
    """A link to put addresses on, in an own namespace of the test's thread."""
    ip("link add v0 type veth peer name v1", "link set v1 up", "link set v0 up")


class Follower:
    def __init__(self) -> None:
        self.sets: list[frozenset[Address]] = []
        self._news = asyncio.Event()

    def sink(self, addresses: frozenset[Address]) -> None:
        self.sets.append(addresses)
        self._news.set()

    async def shows(self, expected: set[str]) -> None:
        wanted = {parse_address(text) for text in expected}
        try:
            async with asyncio.timeout(DEADLINE):
                while not self.sets or self.sets[-1] != wanted:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"expected {sorted(expected)[:9]}, found {texts(self.sets[-1])[:9]}")


def texts(addresses: frozenset[Address]) -> list[str]:
    return sorted(map(format_address, addresses))


@contextlib.asynccontextmanager
async def following() -> AsyncIterator[Follower]:
    follower = Follower()
    task = asyncio.create_task(AddressSource().run(follower.sink))
    try:
        yield follower
        assert not task.done(), "ended by itself"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_which_addresses_count() -> None:
    assert node_addresses() == frozenset()
    ip(
        "addr add 10.1.0.1/24 dev v0",
        "addr add 10.1.0.2/24 dev v0",
        "addr add 192.0.2.7 peer 192.0.2.8 dev v1",
        "addr add 198.51.100.1/32 dev lo",
        "addr add 127.0.0.9/8 dev lo",
        "addr add fd00::1/64 dev v0 nodad",
        "addr add fe80::77/64 dev v0 nodad",
    )
    assert texts(node_addresses()) == ["10.1.0.1", "10.1.0.2", "192.0.2.7", "198.51.100.1", "fd00::1"]


def test_changes_are_followed() -> None:
    async def scenario() -> None:
        async with following() as seen:
            await seen.shows(set())
            ip("addr add 10.1.0.1/24 dev v0")
            await seen.shows({"10.1.0.1"})
            ip("addr add fd00::1/64 dev v0")  # tentative at first
            await seen.shows({"10.1.0.1", "fd00::1"})
            ip("addr del 10.1.0.1/24 dev v0")
            await seen.shows({"fd00::1"})
            ip("addr add 10.1.0.2/24 dev v1", "addr add 127.0.0.9/8 dev lo", "addr add fe80::77/64 dev v0 nodad")
            await seen.shows({"10.1.0.2", "fd00::1"})
            ip("link del v0")
            await seen.shows(set())
            assert all(one != next_ for one, next_ in zip(seen.sets, seen.sets[1:], strict=False))

    asyncio.run(scenario())


def test_a_burst_is_one_change_and_lost_events_do_no_harm() -> None:
    """A burst that overflows the socket's buffer, as the loop cannot read meanwhile."""
    addresses = {f"10.{number // 250}.{number % 250}.1" for number in range(1500)}

    async def scenario() -> None:
        async with following() as seen:
            await seen.shows(set())
            ip(*(f"addr add {address}/32 dev v0" for address in sorted(addresses)))
            assert lost_events() > 0
            await seen.shows(addresses)
            assert len(seen.sets) == 2
            ip("addr add 192.0.2.1/32 dev v0")
            await seen.shows(addresses | {"192.0.2.1"})

    asyncio.run(scenario())


def lost_events() -> int:
    """Events that did not fit into the buffers of the namespace's netlink sockets."""
    lines = Path("/proc/thread-self/net/netlink").read_text().splitlines()
    column = lines[0].split().index("Drops")
    return sum(int(line.split()[column]) for line in lines[1:])


def test_no_descriptor_is_left() -> None:
    async def scenario() -> None:
        for _ in range(3):
            async with following() as seen:
                await seen.shows(set())

    asyncio.run(scenario())
    node_addresses()
    before = set(Path("/proc/self/fd").iterdir())
    asyncio.run(scenario())
    node_addresses()
    assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 1
