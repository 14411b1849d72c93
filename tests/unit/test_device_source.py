"""The node's devices, over real netlink in a network namespace of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest

from bpfproxy.lab.wait import wait_until
from bpfproxy.model.address import format_address
from bpfproxy.model.device import Device, NetworkState, NodeNetwork
from bpfproxy.sources.devices import DeviceSource, network_state

DEADLINE = 10.0


def ip(*commands: str) -> None:
    """Carry out `ip` commands in the namespace of this thread, in one go."""
    done = subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=False, capture_output=True)
    assert done.returncode == 0, f"{commands[:9]}: {done.stderr}"


def learn(mac: str, port: str) -> None:
    """Give the bridge of `port` a forwarding entry."""
    subprocess.run(["bridge", "fdb", "add", mac, "dev", port, "master"], check=True)


@pytest.fixture(autouse=True)
def _links(namespace: str) -> None:
    """A pair of links, in an own namespace of the test's thread."""
    for path in Path("/proc/sys/net/ipv6/conf").glob("*/accept_dad"):
        path.write_text("0")
    for path in Path("/proc/sys/net/ipv6/conf").glob("*/addr_gen_mode"):
        path.write_text("1")  # no link-local addresses
    ip("link add v0 type veth peer name v1", "link set v1 up", "link set v0 up")


class Follower:
    def __init__(self) -> None:
        self.states: list[NetworkState] = []
        self._news = asyncio.Event()

    def sink(self, state: NetworkState) -> None:
        self.states.append(state)
        self._news.set()

    @property
    def generation(self) -> int:
        return self.states[-1].route_generation

    async def until(self, what: str, holds: Callable[[NodeNetwork], bool]) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                while not self.states or not holds(self.states[-1].network):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"{what}: {self.states[-1:]}")

    async def shows(self, *names: str) -> None:
        await self.until(f"devices {names}", lambda n: {device.name for device in n.devices} == {"lo", *names})

    async def bumped(self, by: str) -> None:
        """After the `ip` command another generation comes."""
        await self.quiet()
        before = self.generation
        ip(by)
        try:
            async with asyncio.timeout(DEADLINE):
                while self.generation == before:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"{by}: the generation is still {before}")

    async def quiet(self) -> None:
        """Until an address that comes and goes has been seen: nothing is in the pipe before it."""
        marker = f"203.0.113.{len(self.states) % 200 + 1}"
        ip(f"addr add {marker}/32 dev lo")
        await self.until("the marker", lambda n: marker in addresses(n).get("lo", []))
        ip(f"addr del {marker}/32 dev lo")
        await self.until("no marker", lambda n: marker not in addresses(n).get("lo", []))


@contextlib.asynccontextmanager
async def following() -> AsyncIterator[Follower]:
    follower = Follower()
    task = asyncio.create_task(DeviceSource().run(follower.sink))
    try:
        await follower.shows("v0", "v1")
        yield follower
        assert not task.done(), "ended by itself"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def run(scenario: Callable[[Follower], Coroutine[None, None, None]]) -> None:
    async def whole() -> None:
        async with following() as follower:
            await scenario(follower)

    asyncio.run(whole())


def device(network: NodeNetwork, name: str) -> Device:
    [found] = [device for device in network.devices if device.name == name]
    return found


def addresses(network: NodeNetwork) -> dict[str, list[str]]:
    names = {device.index: device.name for device in network.devices}
    return {names[index]: [format_address(a) for a in found] for index, found in network.addresses.items()}


def defaults(network: NodeNetwork) -> set[str]:
    return {device.name for device in network.devices if device.index in network.default_devices}


def test_what_is_told_of_devices() -> None:
    ip(
        "link add br0 type bridge",
        "link set v1 master br0 address 02:00:00:00:00:07 mtu 1400",
        "link add vx0 type vxlan id 7 dev v0 dstport 4789",
        "tuntap add tun0 mode tun",
        "addr add 10.1.0.2/24 dev v0",
        "addr add 10.1.0.1/24 dev v0",
        "addr add 192.0.2.7 peer 192.0.2.8 dev br0",
        "addr add fd00::1/64 dev v0",
        "addr add fe80::77/64 dev v0",
        "addr add fd00::dead/64 dev v0 preferred_lft 0",
    )
    network = network_state().network
    assert [found.index for found in network.devices] == sorted(found.index for found in network.devices)
    assert device(network, "lo").loopback
    assert device(network, "v0").kind == "veth"
    v1 = device(network, "v1")
    assert (v1.master, v1.mtu, v1.mac.hex(), v1.up) == (device(network, "br0").index, 1400, "020000000007", True)
    bridge = device(network, "br0")
    assert (bridge.kind, bridge.up, bridge.ethernet, bridge.loopback) == ("bridge", False, True, False)
    assert device(network, "vx0").kind == "vxlan"
    assert not device(network, "tun0").ethernet
    assert addresses(network) == {"v0": ["10.1.0.2", "10.1.0.1", "fd00::1"], "br0": ["192.0.2.7"]}


def test_default_routes_of_all_kinds() -> None:
    assert defaults(network_state().network) == set()
    ip("addr add 10.1.0.2/24 dev v0", "addr add 10.2.0.2/24 dev v1", "route add default via 10.1.0.1")
    assert defaults(network_state().network) == {"v0"}
    ip("route replace default nexthop via 10.1.0.1 nexthop via 10.2.0.1")
    assert defaults(network_state().network) == {"v0", "v1"}
    ip("route del default", "route add default dev v1 table 77")
    assert defaults(network_state().network) == {"v1"}
    ip("route flush table 77", "route add unreachable default metric 9999")
    assert defaults(network_state().network) == set()
    ip("addr add fd00::2/64 dev v1", "route add default via fd00::1")
    assert defaults(network_state().network) == {"v1"}
    ip(
        "route flush type unreachable",
        "route del default via fd00::1",
        "nexthop add id 5 dev v0",
        "route add default nhid 5",
    )
    assert defaults(network_state().network) == {"v0"}


def test_devices_that_come_and_go_are_followed() -> None:
    async def scenario(seen: Follower) -> None:
        ip("link add a0 type veth peer name a1")
        await seen.shows("v0", "v1", "a0", "a1")
        first = device(seen.states[-1].network, "a0").index
        ip("addr add 10.9.0.1/24 dev a0", "link set a0 up", "link set a1 up")
        await seen.until("its address", lambda n: addresses(n) == {"a0": ["10.9.0.1"]})
        ip("link del a0")
        await seen.shows("v0", "v1")
        await seen.until("nothing", lambda n: not n.addresses and not n.default_devices)
        ip("link add a0 type veth peer name a1")
        await seen.shows("v0", "v1", "a0", "a1")
        assert device(seen.states[-1].network, "a0").index != first
        ip("link set a0 name b0")
        await seen.shows("v0", "v1", "b0", "a1")
        ip("link set b0 up", "link set a1 up", "route add default dev b0")
        await seen.until("a default route", lambda n: defaults(n) == {"b0"})
        ip("link set b0 down")
        await seen.until("no default route", lambda n: not n.default_devices)

    run(scenario)


def test_what_makes_next_hops_stale() -> None:
    async def scenario(seen: Follower) -> None:
        ip("addr add 10.1.0.2/24 dev v0", "addr add fd00::2/64 dev v0")
        await seen.until("addresses", lambda n: len(addresses(n).get("v0", ())) == 2)
        for command in (
            "route add 10.5.0.0/16 via 10.1.0.1",
            "route change 10.5.0.0/16 via 10.1.0.3",
            "route del 10.5.0.0/16",
            "route add fd05::/64 via fd00::1",
            "neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev v0",
            "neigh change 10.1.0.9 lladdr 02:00:00:00:00:0a dev v0",
            "neigh del 10.1.0.9 dev v0",
            "neigh add fd00::9 lladdr 02:00:00:00:00:09 dev v0",
            "link set v1 address 02:00:00:00:00:77",
            "link set v0 mtu 1400",
            "rule add from 10.7.0.0/16 lookup 77",
            "nexthop add id 9 dev v0",
            "link set v1 down",
        ):
            await seen.bumped(command)

    run(scenario)


def test_what_does_not() -> None:
    async def scenario(seen: Follower) -> None:
        ip("addr add 10.1.0.2/24 dev v0", "neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 nud reachable dev v0")
        await seen.until("the address", lambda n: addresses(n) == {"v0": ["10.1.0.2"]})
        ip("neigh change 10.1.0.9 lladdr 02:00:00:00:00:09 nud stale dev v0")
        await seen.quiet()
        ip("link add br0 type bridge", "link set v1 master br0")
        await seen.shows("v0", "v1", "br0")
        await asyncio.sleep(0)
        await seen.quiet()
        before = seen.generation
        ip("neigh change 10.1.0.9 lladdr 02:00:00:00:00:09 nud reachable dev v0")
        ip("neigh change 10.1.0.9 lladdr 02:00:00:00:00:09 nud stale dev v0")
        ip("neigh change 10.1.0.9 lladdr 02:00:00:00:00:09 nud permanent dev v0")
        learn("02:00:00:00:00:33", "v1")
        # The marker's routes count, once when it comes and once when it goes.
        ip("addr add 203.0.113.250/32 dev v0 noprefixroute")
        await seen.until("the end", lambda n: "203.0.113.250" in addresses(n)["v0"])
        assert before <= seen.generation <= before + 1

    run(scenario)


def test_generations_go_on_after_a_restart() -> None:
    async def scenario(seen: Follower) -> None:
        for _ in range(5):
            await seen.bumped("neigh replace 10.1.0.9 lladdr 02:00:00:00:00:09 dev v0")
            await seen.bumped("neigh del 10.1.0.9 dev v0")
        last = seen.generation
        await asyncio.to_thread(wait_until, lambda: network_state().route_generation > last, DEADLINE, "it went on")

    run(scenario)


def test_a_burst_that_overflows_the_buffer_is_one_change() -> None:
    async def scenario(seen: Follower) -> None:
        await seen.quiet()
        told = len(seen.states)
        before = seen.generation
        wanted = {f"10.{number // 250}.{number % 250}.1" for number in range(9000)}
        ip(*(f"addr add {address}/32 dev v0" for address in sorted(wanted)))
        assert lost_events() > 0, "the burst was too small"
        await seen.until("all addresses", lambda n: set(addresses(n).get("v0", ())) == wanted)
        assert seen.generation > before
        assert len(seen.states) - told < 20
        ip("link del v0")
        await seen.shows()

    run(scenario)


def lost_events() -> int:
    """Of this process's route sockets, as /proc/net/netlink counts them."""
    sockets = [line.split() for line in Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]]
    return sum(int(fields[8]) for fields in sockets if fields[1] == "0" and int(fields[3], 16))


def test_nothing_is_told_while_nothing_happens() -> None:
    async def scenario(seen: Follower) -> None:
        await seen.quiet()
        told = len(seen.states)
        await seen.quiet()
        assert len(seen.states) - told <= 4
        assert all(one != other for one, other in zip(seen.states, seen.states[1:], strict=False))

    run(scenario)
