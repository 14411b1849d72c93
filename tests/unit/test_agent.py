"""The agent over simulated kernels: what it does with sources, failures, signals and files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shlex
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

from bpfproxy import status
from bpfproxy.agent import Agent
from bpfproxy.config import Settings
from bpfproxy.errors import AlreadyRunningError, DatapathError, InputError, UnsupportedError
from bpfproxy.lock import StateLock
from bpfproxy.model.address import Address, parse_address
from bpfproxy.model.device import Device, NetworkState, NodeNetwork
from bpfproxy.model.event import ObjectKey, Update
from bpfproxy.model.frontend import Frontend
from bpfproxy.model.service import Node, ObjectName, Protocol, Service, ServicePort
from bpfproxy.proxiers.base import Op, Proxier, Tended
from bpfproxy.runner import Backoff, Runner
from tests.unit.simproxier import Kernel, NodeAddress, SimProxier

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


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    """The agent freezes what the garbage collector would walk; tests share a process."""
    import gc

    yield
    gc.unfreeze()


class TestServing:
    def test_ready_comes_after_the_first_full_sync(self, world: World) -> None:
        async def story() -> None:
            async with world.running() as (agent, events):
                world.say(WEB)
                await events.next("sync", services="1")
                ready = await events.next("ready")
                assert (ready["services"], ready["level"]) == ("1", "INFO")
                assert WEB_IP in world.proxier.kernel
                assert world.proxier.kernel[NodeAddress(HERE)] is True
                assert agent.status.ready
                world.say(DNS)
                await events.next("sync", services="1")
                assert DNS_IP in world.proxier.kernel
                assert events.count("ready") == 1

        asyncio.run(story())

    def test_input_that_is_not_complete_is_served_but_not_ready(self, world: World) -> None:
        async def story() -> None:
            async with world.running() as (agent, events):
                world.say(WEB, complete=False)
                await events.next("incomplete", level="WARNING")
                assert WEB_IP in world.proxier.kernel
                assert not agent.status.ready
                world.say()
                await events.next("ready")

        asyncio.run(story())

    def test_a_burst_is_one_sync(self, world: World) -> None:
        async def story() -> None:
            async with world.running() as (agent, events):
                for number in range(50):
                    world.say(service("web", f"172.30.0.{number + 1}"))
                await events.next("ready")
                assert agent.status.counters.syncs == 1

        asyncio.run(story())

    def test_the_nodes_addresses_and_its_node_object_reach_the_plan(self, world: World) -> None:
        async def story() -> None:
            async with world.running() as (_, events):
                world.say(Node("n1", zone="z1", addresses=(HERE,)), Node("n2", zone="z2"))
                await events.next("ready")
                world.addresses.put_nowait(frozenset({HERE, LATER}))
                await events.next("sync", ops="1")
                assert NodeAddress(LATER) in world.proxier.kernel

        asyncio.run(story())

    def test_upkeep_goes_on_after_a_failure(self, world: World) -> None:
        world.proxier.tended = [
            Tended(0.0, 5),
            DatapathError("no rows today"),
            DatapathError("no rows today"),
            Tended(0.001, 0, ("flows4", "tuples4")),
            Tended(0.0, 2),
        ]

        async def story() -> None:
            async with world.running() as (agent, events):
                failed = await events.next("upkeep_failed", proxier="ebpf", level="ERROR")
                assert failed["error"] == "no rows today"
                await events.next("upkeep_failed", level="DEBUG")
                await events.next("upkeep", expired_flows="2")
                assert agent.status.counters.expired_flows == 7
                assert agent.status.counters.nearly_full_maps == 2
                assert agent.status.counters.failed_upkeep == 2

        asyncio.run(story())

    def test_upkeep_that_is_due_much_later_does_not_keep_it_from_stopping(self, world: World) -> None:
        world.proxier.tended = [Tended(0.0, 1), Tended(3600.0)]

        async def story() -> None:
            async with world.running() as (_, events):
                await events.next("upkeep", expired_flows="1")

        asyncio.run(story())

    def test_the_nodes_devices_and_routes_reach_the_plan(self, world: World) -> None:
        async def story() -> None:
            async with world.running() as (_, events):
                world.say()
                await events.next("ready")
                network = NodeNetwork((Device(2, "eth0"),), frozenset((2,)))
                world.networks.put_nowait(NetworkState(network, 1))
                await events.next("sync", ops="1")
                assert NodeAddress("eth0: UPLINK") in world.proxier.kernel
                world.networks.put_nowait(NetworkState(network, 2))
                await events.next("sync", ops="1")
                assert NodeAddress("routes 2") in world.proxier.kernel
                # Their source fails: what is known stays.
                world.networks.put_nowait(OSError("no netlink"))
                await events.next("source_failed", source="devices")
                assert NodeAddress("eth0: UPLINK") in world.proxier.kernel
                world.networks.put_nowait(NetworkState(route_generation=2))
                await events.next("sync", ops="1")
                assert NodeAddress("eth0: UPLINK") not in world.proxier.kernel

        asyncio.run(story())

    def test_primary_addresses_follow_the_node_object(self, tmp_path: Path) -> None:
        world = World(tmp_path)
        world.settings = Settings(state_dir=tmp_path, node_name="n1", nodeport_addresses=("primary",))

        async def story() -> None:
            async with world.running() as (_, events):
                world.say(Node("n1", addresses=(LATER,)))
                await events.next("ready")
                assert list(world.proxier.kernel) == [NodeAddress(LATER)]
                world.say(removed=(ObjectKey("Node", ObjectName("", "n1")),))
                await events.next("sync", ops="1")
                assert not world.proxier.kernel

        asyncio.run(story())

    def test_everything_is_looked_over_now_and_then(self, tmp_path: Path) -> None:
        world = World(tmp_path)
        world.settings = Settings(state_dir=tmp_path, node_name="n1", sync_period=0.1)

        async def story() -> None:
            async with world.running() as (_, events):
                world.say(WEB)
                await events.next("ready")
                del world.proxier.kernel[WEB_IP]
                await events.next("resync", ops="1")
                assert WEB_IP in world.proxier.kernel

        asyncio.run(story())


class TestTrouble:
    def test_refused_rows_are_told_once_counted_and_tried_again(self, world: World) -> None:
        async def story() -> None:
            refusals = 0

            def refuse(op: Op) -> bool:
                nonlocal refusals
                refused = bool(op.key == WEB_IP)
                refusals += refused
                return refused

            world.proxier.refuses = refuse
            async with world.running() as (agent, events):
                world.say(WEB)
                refused = await events.next("refused", level="ERROR")
                assert (refused["reason"], refused["rows"], refused["first"]) == ("refused", "1", str(WEB_IP))
                while refusals < 4:
                    await events.next("sync", failures="1")
                assert agent.status.pending_rows == 1
                world.proxier.refuses = lambda op: False
                await events.next("recovered")
                assert WEB_IP in world.proxier.kernel
                assert events.count("refused") == 1
                assert agent.status.counters.refused_rows >= 4
                assert agent.status.pending_rows == 0

        asyncio.run(story())

    def test_a_sync_that_fails_is_tried_again(self, world: World) -> None:
        async def story() -> None:
            world.proxier.die_after = 1
            async with world.running() as (agent, events):
                world.say(WEB)
                failed = await events.next("sync_failed", level="ERROR")
                assert failed["error"].startswith("DiedError")
                world.proxier.die_after = None
                await events.next("recovered")
                assert WEB_IP in world.proxier.kernel
                assert agent.status.counters.failed_syncs >= 1
                assert events.count("sync_failed") == 1

        asyncio.run(story())

    def test_refused_input_is_told_line_by_line(self, world: World) -> None:
        async def story() -> None:
            async with world.running() as (agent, events):
                world.objects.put_nowait(InputError("a.yaml: document 1: bad\nb.yaml: document 2: worse"))
                assert (await events.next("refused"))["input"] == "a.yaml: document 1: bad"
                assert (await events.next("refused"))["input"] == "b.yaml: document 2: worse"
                assert agent.status.counters.refused_inputs == 2

        asyncio.run(story())

    def test_a_source_that_fails_is_started_again(self, world: World) -> None:
        async def story() -> None:
            async with world.running() as (agent, events):
                world.objects.put_nowait(OSError("no inotify"))
                failed = await events.next("source_failed")
                assert (failed["source"], failed["error"]) == ("objects", "OSError: no inotify")
                world.say(WEB)
                await events.next("ready")
                assert agent.status.counters.source_restarts == 1

        asyncio.run(story())

    def test_clashes_and_missing_modes_are_told(self, world: World) -> None:
        async def story() -> None:
            async with world.running() as (agent, events):
                world.say(WEB, service("xeb", "172.30.0.1"), service("other", "172.30.0.9", proxy_mode="ipvs"))
                clash = await events.next("clash")
                assert clash["message"] == f"Service ns/xeb: {WEB_IP} belongs to Service ns/web"
                refused = await events.next("refused")
                assert refused["input"] == "Service ns/other: no proxy mode 'ipvs': not in this kernel; served by ebpf"
                await events.next("ready")
                assert agent.status.clashes == [clash["message"]]
                assert agent.status.counters.clashes == 1

        asyncio.run(story())


class TestModes:
    def leave_behind(self, world: World) -> SimProxier:
        """What an agent of another mode would have left."""
        former = world.proxiers["iptables"]

        async def story() -> None:
            world.settings = replace(world.settings, proxy_mode="iptables")
            async with world.running() as (_, events):
                world.say(WEB, DNS)
                await events.next("ready")
            world.settings = replace(world.settings, proxy_mode="ebpf")

        asyncio.run(story())
        assert WEB_IP in former.kernel
        world.objects = asyncio.Queue()
        return former

    def test_the_former_mode_is_cleaned_up_when_the_new_one_serves(self, world: World) -> None:
        former = self.leave_behind(world)
        former.look = lambda kernel: assert_served(kernel, world.proxier.kernel)

        async def story() -> None:
            async with world.running() as (_, events):
                world.say(WEB, complete=False)
                await events.next("sync", services="1")
                assert DNS_IP in former.kernel
                world.say(DNS)
                assert (await events.next("cleaned_up"))["proxier"] == "iptables"
                assert {WEB_IP, DNS_IP} <= world.proxier.kernel.keys()
                assert (former.kernel, former.closed) == ({}, True)

        asyncio.run(story())

    def test_it_stays_as_long_as_connections_depend_on_it(self, world: World) -> None:
        former = self.leave_behind(world)
        former.is_drained = False

        async def story() -> None:
            async with world.running() as (_, events):
                world.say(WEB, DNS)
                assert (await events.next("draining"))["proxier"] == "iptables"
                assert WEB_IP not in former.kernel
                assert NodeAddress(HERE) in former.kernel
                former.is_drained = True
                world.say(service("more", "172.30.0.3"))
                await events.next("cleaned_up")
                assert former.kernel == {}
                assert events.count("draining") == 1

        asyncio.run(story())

    def test_the_annotation_opens_a_mode_and_its_end_takes_it_away(self, world: World) -> None:
        other = world.proxiers["iptables"]

        async def story() -> None:
            async with world.running() as (_, events):
                world.say(WEB, DNS)
                await events.next("ready")
                assert other.kernel == {}
                world.say(service("dns", "172.30.0.2", proxy_mode="iptables"))
                await events.next("sync", services="1")
                assert (DNS_IP in other.kernel, DNS_IP in world.proxier.kernel) == (True, False)
                assert NodeAddress(HERE) in other.kernel
                world.say(DNS)
                await events.next("cleaned_up")
                assert (other.kernel, DNS_IP in world.proxier.kernel) == ({}, True)

        asyncio.run(story())

    def test_a_cleanup_that_fails_is_tried_again(self, world: World) -> None:
        former = self.leave_behind(world)
        cleanup = world.cleanup
        world.cleanup = lambda mode: 1 / 0  # type: ignore[method-assign,assignment,return-value]

        async def story() -> None:
            async with world.running() as (_, events):
                world.say(WEB, DNS)
                assert (await events.next("cleanup_failed"))["proxier"] == "iptables"
                world.cleanup = cleanup  # type: ignore[method-assign]
                world.say(service("more", "172.30.0.3"))
                await events.next("cleaned_up")
                assert former.kernel == {}

        asyncio.run(story())


class TestComingAndGoing:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_in_order(self, world: World, number: signal.Signals) -> None:
        async def story() -> None:
            async with world.running() as (agent, events):
                world.say(WEB)
                await events.next("ready")
                os.kill(os.getpid(), number)
                stopped = await events.next("stopped")
                assert stopped["signal"] == number.name
                assert WEB_IP in world.proxier.kernel
                assert agent.status.pid is None

        asyncio.run(story())

    def test_it_can_be_stopped_before_it_serves(self, world: World) -> None:
        async def story() -> None:
            async with world.running() as (agent, _):
                agent.stop()

        asyncio.run(story())
        assert world.proxier.kernel == {}

    def test_a_second_agent_is_refused(self, world: World) -> None:
        async def story() -> None:
            async with world.running() as (_, events):
                await events.next("started")
                with pytest.raises(AlreadyRunningError, match=str(os.getpid())):
                    await Agent(world.settings, world).run()

        asyncio.run(story())

    def test_bad_settings_touch_nothing(self, tmp_path: Path) -> None:
        world = World(tmp_path / "state")
        world.settings = Settings(state_dir=tmp_path / "state", cluster_cidr=("10.0.0.0/33",))
        with pytest.raises(InputError, match=r"10\.0\.0\.0/33"):
            asyncio.run(Agent(world.settings, world).run())
        assert not (tmp_path / "state").exists()

    def test_what_cannot_start_ends_with_its_error_and_releases_the_lock(self, world: World) -> None:
        world.cannot_open = DatapathError("no")
        with pytest.raises(DatapathError):
            asyncio.run(Agent(world.settings, world).run())
        StateLock(world.settings.state_dir).release()

    def test_systemd_is_told(self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "notify"
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))

        async def story() -> None:
            async with world.running() as (_, events):
                world.say()
                await events.next("ready")

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.bind(str(path))
            channel.settimeout(DEADLINE)
            asyncio.run(story())
            assert [channel.recv(100), channel.recv(100)] == [b"READY=1", b"STOPPING=1"]


class TestStatus:
    def test_the_file_says_how_it_is(self, world: World) -> None:
        async def story() -> None:
            async with world.running() as (_, events):
                world.say(WEB)
                await events.next("ready")

        asyncio.run(story())
        found = status.read(world.settings.state_dir)
        assert found is not None
        assert (found.pid, found.node, found.ready, found.services) == (None, "n1", True, 1)
        assert found.settings["state_dir"] == str(world.settings.state_dir)
        assert found.counters.syncs == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found.last_sync or "")
        assert sorted(path.name for path in world.settings.state_dir.iterdir()) == ["agent.json", "lock"]

    def test_no_agent_no_status(self, tmp_path: Path) -> None:
        assert status.read(tmp_path) is None

    def test_a_file_of_another_making_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "agent.json").write_text(json.dumps({"pid": "x"}))
        with pytest.raises(InputError, match=r"agent\.json"):
            status.read(tmp_path)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestRunner:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def runner(self, clock: Clock) -> Runner:
        return Runner(minimum=2.0, maximum=30.0, backoff=Backoff(4.0, 10.0), clock=clock)

    def test_idle_until_a_full_run_is_due(self, runner: Runner, clock: Clock) -> None:
        assert runner.delay() == 30.0
        clock.now += 30.0
        assert runner.delay() == 0.0
        assert runner.begin() is True
        runner.end(ok=True)
        assert runner.delay() == 30.0

    def test_a_request_is_due_at_once_but_not_too_soon_after_a_run(self, runner: Runner, clock: Clock) -> None:
        runner.request()
        assert runner.delay() == 0.0
        assert runner.begin() is False
        runner.end(ok=True)
        runner.request()
        assert runner.delay() == 2.0
        clock.now += 1.5
        assert runner.delay() == 0.5

    def test_a_request_during_a_run_is_another_run(self, runner: Runner, clock: Clock) -> None:
        runner.request()
        runner.begin()
        clock.now += 5.0
        runner.request()
        runner.end(ok=True)
        assert runner.delay() == 0.0

    def test_failures_are_tried_again_later_and_later(self, clock: Clock) -> None:
        runner = Runner(minimum=2.0, maximum=300.0, backoff=Backoff(4.0, 10.0), clock=clock)
        pauses = []
        runner.request()
        for _ in range(4):
            runner.begin()
            runner.end(ok=False)
            pauses.append(runner.delay())
            clock.now += runner.delay()
        assert pauses == [4.0, 8.0, 10.0, 10.0]
        assert runner.failures == 4
        runner.begin()
        runner.end(ok=True)
        assert runner.failures == 0
        assert runner.delay() > 0.0

    def test_a_change_does_not_wait_for_the_next_try(self, runner: Runner, clock: Clock) -> None:
        runner.begin()
        runner.end(ok=False)
        clock.now += 2.0
        runner.request()
        assert runner.delay() == 0.0
