"""Cases in which something happens: endpoints come and go under traffic, much is sent, somebody sticks to somebody.

Each is a function over a Service in a running lab, which returns what differed from the semantics, a line each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

from bpfproxy.lab.cases import Endpoint, Port, Service, Via
from bpfproxy.lab.divergences import Divergence
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from bpfproxy.lab.oracle import Mode
from bpfproxy.lab.scene import How, Scene
from bpfproxy.lab.wait import wait_until
from bpfproxy.parity.report import Cell

_TCP: Final = (Port(80, name="web"),)
_UDP: Final = (Port(80, name="datagrams", protocol="UDP"),)
_FAMILIES: Final[tuple[Family, ...]] = (4, 6)
_WAYS: Final[tuple[tuple[str, Via], ...]] = (("pod1c", "ClusterIP"), ("node1", "ClusterIP"), ("client", "NodePort"))
"""A client and the kind of frontend that it goes by."""
_BYTES: Final = 8 << 20
_REFUSAL: Final = 2.5
"""Seconds to wait for one: over IPv6 the first may come back while connect() still holds the socket, and be lost."""


@dataclass(frozen=True)
class Stage:
    """A Service with endpoints that all answer, and who talks to it."""

    scene: Scene
    endpoints: tuple[str, ...]
    client: str
    via: Via
    family: Family

    @property
    def how(self) -> How:
        """What the scene is to be asked with."""
        return How(client=self.client, via=self.via, family=self.family)

    def leave_out(self, endpoint: str, *others: Endpoint) -> set[str]:
        """Take an endpoint away, or put `others` in its place, and wait until new connections know; who answers them
        now."""
        left = [one for one in self.endpoints if one != endpoint]
        self.scene.put(*left, *others)
        self.scene.settle(*left, client=self.client)
        return set(left)

    def shares(self, sockets: int, timeout: float = 0.5) -> set[str]:
        """Who answers so many connections; errors by their names."""
        return set(self.scene.shares(sockets, timeout, **self.how))


Play = Callable[[Stage], Iterator[str]]


@dataclass(frozen=True)
class Scenario:
    """One of them. `play` is called for each client and family, on a Service with endpoints in `endpoints`."""

    name: str
    about: str
    rules: tuple[int, ...]
    service: Service
    endpoints: tuple[str, ...]
    play: Play
    detector: bool = True
    divergences: tuple[tuple[Mode, Divergence], ...] = ()


def play(lab: Lab, mode: Mode, scenario: Scenario) -> Cell:
    """Its cell."""
    differences: list[str] = []
    sent = 0
    for (client, via), family in product(_WAYS, _FAMILIES):
        scene = Scene(lab, lab.directory / "manifests", scenario.service)
        try:
            scene.put(*scenario.endpoints)
            if not scenario.service.affinity:
                scene.settle(*scenario.endpoints, client=client)
            else:
                wait_until(lambda: set(scene.shares(1, client=client)) <= set(scenario.endpoints), 5, "it is served")  # noqa: B023
            found = list(scenario.play(Stage(scene, scenario.endpoints, client, via, family)))
        except TimeoutError as error:
            found = [str(error)]
        finally:
            scene.remove()
        sent += 1
        differences += [f"{scenario.name}: {client} to {via} IPv{family}: {line}" for line in found]
    divergences = tuple(sorted(divergence for of, divergence in scenario.divergences if of == mode))
    return Cell(scenario.name, mode, sent, tuple(differences), divergences)


def _tcp_outlives_its_endpoint(stage: Stage) -> Iterator[str]:
    with stage.scene.lab.places[stage.client].open(stage.scene.flow(**stage.how)) as held:
        before = held.exchange()
        if not before.reply:
            yield f"no answer: {before.error}"
            return
        stage.leave_out(before.reply.place)
        after = held.exchange()
        if not after.reply or after.reply.place != before.reply.place:
            yield f"the connection to {before.reply.place} did not go on: {after.error or after.reply}"


def _udp_moves_on(stage: Stage) -> Iterator[str]:
    with stage.scene.lab.places[stage.client].open(stage.scene.flow(0.3, **stage.how)) as held:
        before = held.exchange()
        if not before.reply:
            yield f"no answer: {before.error}"
            return
        left = stage.leave_out(before.reply.place)
        seen = [""]

        def moved() -> bool:
            # The owner of a socket that was ended connects again.
            after = held.exchange(reconnect=seen[-1].startswith("E"), to=stage.scene.to(**stage.how))
            seen.append(after.reply.place if after.reply else after.error)
            return seen[-1] in left

        try:
            wait_until(moved, 5, "the flow moves on")
        except TimeoutError:
            yield f"the flow of {before.reply.place} did not move on: {seen[-3:]}"


def _udp_stays_while_serving(stage: Stage) -> Iterator[str]:
    with stage.scene.lab.places[stage.client].open(stage.scene.flow(0.5, **stage.how)) as held:
        before = held.exchange()
        if not before.reply:
            yield f"no answer: {before.error}"
            return
        had = before.reply.place
        stage.leave_out(had, Endpoint(had, ready=False, serving=True, terminating=True))
        for _ in range(3):
            after = held.exchange()
            if not after.reply or after.reply.place != had:
                yield f"the flow left {had}, which still serves: {after.error or after.reply}"
                return


def _affinity_forgets(stage: Stage) -> Iterator[str]:
    had = stage.shares(8)
    if len(had) != 1:
        yield f"{sorted(had)} answered a client that sticks to one"
        return
    left = set(stage.endpoints) - had
    stage.scene.put(*left)
    wait_until(lambda: not had & stage.shares(2), 5, f"{had} gets nothing any more")
    now = stage.shares(8)
    if len(now) != 1 or not now <= left:
        yield f"{sorted(now)} answered a client that sticks to one of {sorted(left)}"


def _much(stage: Stage) -> Iterator[str]:
    for _ in stage.endpoints:
        done = stage.scene.transfer(_BYTES, **stage.how)
        if done.error or not done.intact:
            yield f"{_BYTES >> 20} MiB each way: {done}"


def _come_and_go(stage: Stage) -> Iterator[str]:
    stage.scene.put()
    wait_until(lambda: stage.shares(1, _REFUSAL) == {"ECONNREFUSED"}, 3 * _REFUSAL, "it is refused")
    stage.scene.put(*stage.endpoints)
    wait_until(lambda: stage.shares(48) == set(stage.endpoints), 5, "all endpoints answer again")
    yield from ()


SCENARIOS: Final[tuple[Scenario, ...]] = (
    Scenario(
        "tcp-endpoint-gone",
        "a connection runs out on an endpoint that is gone",
        (16,),
        Service(_TCP, type="NodePort"),
        ("pod1a", "pod2a"),
        _tcp_outlives_its_endpoint,
    ),
    Scenario(
        "udp-endpoint-gone",
        "a flow goes to a live endpoint when its own is gone",
        (16,),
        Service(_UDP, type="NodePort"),
        ("pod1a", "pod2a"),
        _udp_moves_on,
    ),
    Scenario(
        "udp-endpoint-terminating",
        "a flow stays where its endpoint terminates and still serves",
        (16,),
        Service(_UDP, type="NodePort"),
        ("pod1a", "pod2a"),
        _udp_stays_while_serving,
    ),
    Scenario(
        "affinity-endpoint-gone",
        "an affinity to an endpoint that is gone is forgotten",
        (15,),
        Service(_TCP, type="NodePort", affinity=600),
        ("pod1a", "pod1b", "pod2a"),
        _affinity_forgets,
    ),
    Scenario(
        "large-transfer",
        "megabytes each way, with checksums and segments left to devices",
        (7, 8),
        Service(_TCP, type="NodePort"),
        ("pod1a", "pod2a"),
        _much,
    ),
    Scenario(
        "endpoints-come-and-go",
        "all endpoints go and come back",
        (11,),
        Service(_TCP, type="NodePort"),
        ("pod1a", "pod2a"),
        _come_and_go,
    ),
)
