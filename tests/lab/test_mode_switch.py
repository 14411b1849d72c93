"""The agent of a node is started again in another mode: from each of those that this kernel has to each other one.

What becomes of connections is what docs/operations.md says. All tests share a lab, whose node each of them leaves as a
user's node is without us.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, permutations
from pathlib import Path

import pytest
from msgspec.structs import replace

from bpfproxy.lab import manifests
from bpfproxy.lab.cases import Port, Service, Via
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from bpfproxy.lab.node import Agent, packet_level
from bpfproxy.lab.place import Flow, OpenFlow
from bpfproxy.lab.scene import How, Scene
from bpfproxy.lab.wait import wait_until
from tests.lab import foreign
from tests.lab.relays import relays

BOTH = (Port(80, name="web"), Port(80, name="datagrams", protocol="UDP"))
UDP = 1
MODES = ("ebpf", "iptables", "nftables", "userspace")
MARKS = {"ebpf": "bpf", "iptables": "iptables.json", "nftables": "nftables", "userspace": "userspace"}
"""What a mode that has anything in the kernel has in the state directory."""
RULES = ("iptables", "nftables")
FAMILIES: tuple[Family, ...] = (4, 6)
WAYS: tuple[tuple[str, Via], ...] = (
    ("pod1c", "ClusterIP"),
    ("bare1c", "ClusterIP"),
    ("node1", "ClusterIP"),
    ("client", "NodePort"),
)
"""A client and the kind of frontend that it goes by."""
HOOKED = ("pod1c", "node1")
SERVICES = {
    "one": (Service(BOTH, type="NodePort"), ("pod1a",)),
    "some": (Service(BOTH, type="NodePort"), ("pod1a", "pod2a")),
    "maglev": (Service(BOTH, type="NodePort", scheduler="maglev"), ("pod1a", "pod2a")),
}
"""Where eBPF could tell the backend of a connection that it has not seen, rightly or not, and where it could not."""
TOLD = ("EDESTADDRREQ", "ECONNABORTED", "ECONNREFUSED")
"""What a call says on a socket that was ended."""
_source_ports = count(10000)
"""Of held connections: below those of short ones, which would meet them at backends now and then."""


@dataclass
class World:
    """A node, and three Services for it."""

    lab: Lab
    manifests: Path
    before: set[str]
    """What was in the node's netfilter before us."""
    scenes: dict[str, Scene] = field(default_factory=dict)
    agent: Agent = field(init=False)
    began: int = 0
    """Where the log of the present run begins."""

    def launch(self, mode: str) -> Agent:
        """Start the agent in a mode, without waiting."""
        options = ("--proxy-mode", mode, "--sync-period", "1", *packet_level("tc"))
        self.agent = self.lab.agent("node1", manifests=self.manifests, loader="prebuilt", options=options)
        self.began = len(self.agent.said()) if self.agent.log.exists() else 0
        self.agent.launch()
        return self.agent

    def switch(self, mode: str) -> None:
        """Start it in a mode, in place of the one that runs."""
        self.agent.stop()
        self.launch(mode).wait_ready()

    def said(self, text: str, timeout: float = 60) -> None:
        """Wait until the present run has said something."""
        wait_until(lambda: text in self.agent.said(self.began), timeout, text)

    def drained(self, *modes: str) -> None:
        """Wait until these modes are cleaned up, whose connections are closed: eBPF is made to forget such."""
        if "ebpf" in modes:
            done = self.agent.command("conntrack", "flush", "--state-dir", str(self.agent.state))
            assert done.returncode in (0, 7), done.stderr
        for mode in modes:
            mark = self.agent.state / MARKS[mode]
            wait_until(lambda mark=mark: not mark.exists(), 60, f"{mode} is cleaned up")  # type: ignore[misc]

    def clean(self) -> None:
        """`bpfproxy cleanup`, which has to leave the node as it was."""
        self.agent.stop()
        done = self.agent.cleanup()
        assert done.returncode == 0, done.stderr
        assert self.netfilter() == self.before
        assert relays(self.agent.state) == []
        assert not self.agent.state.exists()
        assert str(self.agent.state) not in Path("/proc/self/mountinfo").read_text()
        again = self.agent.cleanup()
        assert (again.returncode, again.stdout != done.stdout) == (0, True)

    def netfilter(self) -> set[str]:
        return foreign.snapshot(self.lab.topology, "node1")

    def served(self) -> None:
        """Wait until all Services answer new connections of all clients."""
        for scene in self.scenes.values():
            for client, via in WAYS:
                for family in FAMILIES:
                    for port in (0, UDP):
                        how: How = {"client": client, "via": via, "family": family, "port": port}
                        wait_until(lambda how=how, scene=scene: scene.ask(1, 0.3, **how)[0].reply, 10, f"{how}")  # type: ignore[misc]


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with Lab(unhooked=True) as lab:
        directory = lab.directory / "manifests"
        manifests.write(directory, "nodes", manifests.nodes())
        foreign.put(lab.topology, "node1")
        world = World(lab, directory, foreign.snapshot(lab.topology, "node1"))
        for name, (service, places) in SERVICES.items():
            world.scenes[name] = scene = Scene(lab, directory, service)
            scene.put(*places)
        yield world


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    yield shared
    shared.agent.stop()
    shared.agent.cleanup()


@dataclass
class Held:
    """A socket that stays connected."""

    name: str
    client: str
    flow: Flow
    socket: OpenFlow
    place: str = ""

    def go_on(self, *, reconnect: bool = False) -> str:
        """Send a request: `same` if the backend that had answered before does so again, `other` if another one does, or
        the name of an error."""
        outcome = self.socket.exchange(reconnect=reconnect, to=self.flow.to if reconnect else None)
        if outcome.reply is None:
            return outcome.error
        before, self.place = self.place, outcome.reply.place
        return "same" if self.place == before else "other"


@contextlib.contextmanager
def held(world: World, port: int) -> Iterator[list[Held]]:
    """Sockets of all clients that are connected to all Services."""
    with contextlib.ExitStack() as stack:
        found = []
        for name, scene in world.scenes.items():
            for client, via in WAYS:
                for family in FAMILIES:
                    how: How = {"client": client, "via": via, "family": family, "port": port}
                    source = ("0.0.0.0" if family == 4 else "::", next(_source_ports))
                    flow = Flow(**{**vars(scene.flow(0.5, **how)), "source": source})
                    opened = stack.enter_context(world.lab.places[client].open(flow))
                    assert not opened.error, (name, how, opened.error)
                    found.append(Held(f"{name}: {client} to {via} IPv{family}", client, flow, opened))
        assert [one.name for one in found if one.go_on() != "other"] == []
        yield found


@contextlib.contextmanager
def short_ones(world: World) -> Iterator[None]:
    """Connections that are opened all the time; none may fail."""
    with contextlib.ExitStack() as stack:
        loads = {
            (name, client, family): stack.enter_context(
                world.lab.places[client].load(
                    scene.flow(client=client, via=via, family=family), hold=False, interval=0.05
                )
            )
            for name, scene in world.scenes.items()
            for client, via in WAYS
            for family in FAMILIES
        }
        yield
    reports = {way: load.stop() for way, load in loads.items()}
    assert {way: report for way, report in reports.items() if report.errors or report.sent <= 10} == {}


def fate(old: str, new: str, client: str) -> tuple[str, ...]:
    """What a connected UDP socket sees, by docs/operations.md."""
    if old == "ebpf":
        return TOLD if client in HOOKED else ("same", "other")
    if old in RULES and (new in RULES or (new == "ebpf" and client == "node1")):
        return ("same",)
    if (old, new, client) == ("userspace", "ebpf", "node1"):
        return ("TIMEOUT",)
    return ("same", "other")


@pytest.mark.parametrize(("old", "new"), list(permutations(MODES, 2)))
def test_switch(world: World, old: str, new: str) -> None:
    world.launch(old).wait_ready()
    world.served()
    with held(world, 0) as connections, held(world, UDP) as sockets:
        with short_ones(world):
            world.switch(new)
            waits = old in ("ebpf", "userspace") or new == "ebpf"
            world.said(f"event={'draining' if waits else 'cleaned_up'} proxier={old}")
        seen = {one.name: one.go_on() for one in connections}
        assert {name: what for name, what in seen.items() if what != "same"} == {}
        found = {one.name: one.go_on() for one in sockets}
        assert {one.name: found[one.name] for one in sockets if found[one.name] not in fate(old, new, one.client)} == {}
        for one in sockets:
            if found[one.name] in ("same", "other"):
                assert one.go_on() == "same"
            else:  # a socket that was ended says so twice, when something is sent and when something is awaited
                wait_until(lambda one=one: one.go_on(reconnect=True) in ("same", "other"), 5, f"{one.name} goes on")  # type: ignore[misc]
        assert "cleaned_up" not in world.agent.said(world.began) or not waits
    world.drained(old)
    assert world.before <= world.netfilter()
    world.clean()


@pytest.mark.parametrize(("old", "new", "last"), [(MODES[at - 2], MODES[at - 1], MODES[at]) for at in range(4)])
def test_killed_amidst_a_switch(world: World, old: str, new: str, last: str) -> None:
    """At each stage, and started again in a third mode."""
    world.launch(old).wait_ready()
    world.served()
    with short_ones(world):
        world.agent.kill()
        for stage in ("event=started", "sync services=", "event=ready"):
            world.launch(new)
            world.said(stage)
            world.agent.kill()
        world.launch(last).wait_ready()
        world.served()
    world.drained(old, new)
    assert world.before <= world.netfilter()
    world.clean()


PODS = ("pod1a", "pod1b", "pod2a", "pod2b")


@pytest.mark.parametrize("seed", range(2))
def test_any_history_is_cleaned_up(world: World, seed: int) -> None:
    """Changes, restarts and kills in any order: all is served after each, and nothing is left in the end."""
    dice = random.Random(seed)
    before = {name: scene.service for name, scene in world.scenes.items()}
    world.launch(dice.choice(MODES)).wait_ready()
    try:
        for _ in range(8):
            scene = dice.choice(list(world.scenes.values()))
            match dice.choice(("start", "kill", "mode", "endpoints")):
                case "start":
                    world.switch(dice.choice(MODES))
                case "kill":
                    world.agent.kill()
                    world.launch(dice.choice(MODES))
                    world.said(dice.choice(("event=started", "event=resync")))
                    world.agent.kill()
                    world.launch(dice.choice(MODES)).wait_ready()
                case "mode":
                    scene.service = replace(scene.service, proxy_mode=dice.choice(MODES))
                    scene.put(*scene.service.endpoints)
                case "endpoints":
                    scene.put(*dice.sample(PODS, 2))
            world.served()
            for one in world.scenes.values():
                places = {endpoint.at for endpoint in one.service.endpoints}
                wait_until(lambda one=one, places=places: set(one.shares(8)) <= places, 10, f"{places} answer")  # type: ignore[misc]
        assert world.before <= world.netfilter()
        world.clean()
    finally:
        for name, scene in world.scenes.items():
            scene.service = before[name]
            scene.put(*scene.service.endpoints)
