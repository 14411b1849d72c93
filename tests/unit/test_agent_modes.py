"""The agent and several proxiers: opened when they are named, cleaned up when they serve nothing any more."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.unit.agent_world import (
    DNS,
    DNS_IP,
    HERE,
    WEB,
    WEB_IP,
    World,
    assert_served,
    service,
)
from tests.unit.simproxier import NodeAddress, SimProxier


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
                assert former.preceded >= {WEB_IP, DNS_IP}
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
