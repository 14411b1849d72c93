"""One node serves Services in several modes at once, by their annotation, under load: none harms another's flows.

eBPF, the node's own mode, sees packets before conntrack does. The rules of the others drop what conntrack finds
INVALID, and masquerade with ports, of which some are eBPF's.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import pytest
from msgspec.structs import replace
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from bpfproxy.config import Settings
from bpfproxy.lab import manifests, netns
from bpfproxy.lab.cases import Port, Service, Via
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from bpfproxy.lab.node import packet_level
from bpfproxy.lab.scene import How, Scene
from bpfproxy.lab.wait import wait_until

BOTH = (Port(80, name="web"), Port(80, name="datagrams", protocol="UDP"))
UDP = 1
MODES = ("ebpf", "iptables", "nftables", "userspace")
FAMILIES: tuple[Family, ...] = (4, 6)
WAYS: tuple[tuple[str, Via], ...] = (
    ("pod1c", "ClusterIP"),
    ("bare1a", "ClusterIP"),
    ("bare1c", "NodePort"),
    ("node1", "ClusterIP"),
    ("client", "NodePort"),
    ("client", "ClusterIP"),
)
"""Clients that hooks see, that devices see, and the kind of frontend that they go by."""
BYTES = 2 << 20
SNAT = Settings().snat_range()
"""First and last port with which eBPF translates sources."""


@dataclass
class World:
    """A node with a Service per mode, each with an endpoint on the node and one elsewhere."""

    lab: Lab
    scenes: dict[str, Scene]

    def add(self, mode: str, *places: str, **more: object) -> Scene:
        """One more Service."""
        service = Service(BOTH, type="NodePort", proxy_mode=None if mode == "ebpf" else mode, **more)  # type: ignore[arg-type]
        scene = Scene(self.lab, self.lab.directory / "manifests", service)
        scene.put(*places)
        return scene

    def ways(self) -> Iterator[tuple[str, How]]:
        """Each Service, as each client asks it."""
        for mode in self.scenes:
            for client, via in WAYS:
                for family in FAMILIES:
                    yield mode, {"client": client, "via": via, "family": family}


@pytest.fixture(scope="module", params=["tc", "xdp", "tc-host-routing", "xdp-host-routing"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    way, _, host_routing = request.param.partition("-")
    with Lab(xdp=["node1"] if way == "xdp" else [], unhooked=True) as lab:
        directory = lab.directory / "manifests"
        manifests.write(directory, "nodes", manifests.nodes())
        made = World(lab, {})
        made.scenes = {mode: made.add(mode, "pod1a", "pod2a") for mode in MODES}
        options = ("--sync-period", "1", *packet_level(way, host_routing=bool(host_routing)))
        lab.agent("node1", manifests=directory, loader="prebuilt", options=options).start()
        settle(made.scenes.values(), "pod1a", "pod2a")
        yield made


def settle(scenes: Iterable[Scene], *places: str) -> None:
    """Wait until these places answer new connections of all clients, patiently, since there is much traffic."""
    for scene in scenes:
        for client, via in WAYS:
            for family in FAMILIES:
                how: How = {"client": client, "via": via, "family": family}
                wait_until(lambda scene=scene, how=how: set(scene.shares(24, 5, **how)) == set(places), 60, f"{how}")  # type: ignore[misc]


@contextlib.contextmanager
def traffic(world: World) -> Iterator[None]:
    """Held and short connections of all clients to all Services; none may fail."""
    with contextlib.ExitStack() as stack:
        loads = {
            (mode, *how.values(), hold): stack.enter_context(
                world.lab.places[how["client"]].load(
                    world.scenes[mode].flow(5, **how), hold=hold, interval=0.5 if hold else 0.2
                )
            )
            for mode, how in world.ways()
            for hold in (False, True)
        }
        yield
    reports = {way: load.stop() for way, load in loads.items()}
    assert {way: report for way, report in reports.items() if report.errors or report.sent <= 5} == {}


def transfers(world: World) -> list[str]:
    """Some megabytes there and back between all clients and all Services; what went wrong."""

    def of_client(client: str) -> list[str]:
        return [
            f"{mode}: {how}: {done}"
            for mode, how in world.ways()
            if how["client"] == client
            for done in (world.scenes[mode].transfer(BYTES, **how),)
            if done.error or not done.intact
        ]

    clients = sorted({client for client, _ in WAYS})
    with ThreadPoolExecutor(len(clients)) as threads:
        return [line for lines in threads.map(of_client, clients) for line in lines]


def masqueraded(world: World) -> list[tuple[int, int]]:
    """(protocol, port) of connections that conntrack on the node gives another source to."""
    found = []
    with netns.inside(world.lab.topology.netns("node1")):
        for family in (2, 10):
            with closing(NFCTSocket(nfgen_family=family)) as conntrack:
                for message in conntrack.dump():
                    original, reply = message.get_attr("CTA_TUPLE_ORIG"), message.get_attr("CTA_TUPLE_REPLY")
                    version = "V4" if family == 2 else "V6"
                    client = original.get_attr("CTA_TUPLE_IP").get_attr(f"CTA_IP_{version}_SRC")
                    seen_as = reply.get_attr("CTA_TUPLE_IP").get_attr(f"CTA_IP_{version}_DST")
                    ports = reply.get_attr("CTA_TUPLE_PROTO")
                    if seen_as != client:
                        found.append((ports.get_attr("CTA_PROTO_NUM"), ports.get_attr("CTA_PROTO_DST_PORT")))
    return found


_LISTINGS = {
    "iptables": ("iptables-save",),
    "nftables": ("nft", "list", "table", "ip", "kube-proxy"),
    "userspace": ("nft", "list", "table", "inet", "bpfproxy-userspace"),
}


def holders(world: World, scene: Scene) -> set[str]:
    """The modes that have a Service's ClusterIP in the kernel."""
    address = scene.to(via="ClusterIP")[0]
    with netns.inside(world.lab.topology.netns("node1")):
        listings = {
            mode: subprocess.run(command, check=False, text=True, capture_output=True).stdout
            for mode, command in _LISTINGS.items()
        }
    listings["ebpf"] = str(world.lab.agents["node1"].look("service", "list"))
    return {mode for mode, text in listings.items() if re.search(rf"\b{re.escape(address)}\b", text)}


def test_each_is_served_by_its_own(world: World) -> None:
    assert {mode: holders(world, scene) for mode, scene in world.scenes.items()} == {mode: {mode} for mode in MODES}


def test_much_is_sent_while_services_change(world: World) -> None:
    """Endpoints come and go, rules are written anew, the agent is killed and started again."""
    agent = world.lab.agents["node1"]
    with traffic(world):
        assert transfers(world) == []
        for places in (("pod1a", "pod1b", "pod2a"), ("pod1b", "pod2b"), ("pod1a", "pod2a")):
            others = [world.add(mode, *places) for mode in MODES]
            for scene in world.scenes.values():
                scene.put(*places)
            settle(world.scenes.values(), *places)
            for other in others:
                other.remove()
        agent.kill()
        agent.start()
        settle(world.scenes.values(), "pod1a", "pod2a")
        assert transfers(world) == []
    ports = masqueraded(world)
    assert len(ports) > 500
    assert [port for port in ports if SNAT[0] <= port[1] <= SNAT[1]] == []


def test_a_service_moves_under_load(world: World) -> None:
    """Through all modes and back. Connections that it had go on where they were opened."""
    scene = world.scenes["ebpf"]
    with traffic(world):
        for mode in (*MODES[1:], "ebpf"):
            scene.service = replace(scene.service, proxy_mode=mode)
            scene.put("pod1a", "pod2a")
            wait_until(lambda mode=mode: holders(world, scene) == {mode}, 10, f"{mode} serves it")  # type: ignore[misc]
            settle([scene], "pod1a", "pod2a")
