"""The agent over simulated kernels: what it does with sources, failures, signals and files."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from bpfproxy import status
from bpfproxy.agent import Agent
from bpfproxy.config import Settings
from bpfproxy.errors import AlreadyRunningError, DatapathError, InputError
from bpfproxy.lock import StateLock
from bpfproxy.model.device import Device, NetworkState, NodeNetwork
from bpfproxy.model.event import ObjectKey
from bpfproxy.model.service import Node, ObjectName
from bpfproxy.proxiers.base import Op, Tended
from tests.unit.agent_world import (
    DEADLINE,
    DNS,
    DNS_IP,
    HERE,
    LATER,
    WEB,
    WEB_IP,
    World,
    service,
)
from tests.unit.simproxier import NodeAddress


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
