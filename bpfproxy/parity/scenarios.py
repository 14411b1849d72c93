"""Cases in which something happens: endpoints come and go under traffic, much is sent, time passes.

Each is a function over a stage, which yields what differed from the semantics, a line each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Final

from bpfproxy.lab import change
from bpfproxy.lab.cases import Endpoint, Port, Service
from bpfproxy.lab.layout import Family
from bpfproxy.lab.topology import Topology
from bpfproxy.lab.wait import wait_until
from bpfproxy.parity.stage import PATIENCE, Scenario, Stage

_TCP: Final = (Port(80, name="web"),)
_UDP: Final = (Port(80, name="datagrams", protocol="UDP"),)
_BYTES: Final = 8 << 20
_REFUSAL: Final = 2.5
"""Seconds to wait for one: over IPv6 the first may come back while connect() still holds the socket, and be lost."""
_WINDOW: Final = 2
"""timeoutSeconds of an affinity that is to pass."""
_MTU: Final = 1400
_HEADERS: Final[dict[Family, int]] = {4: 28, 6: 48}
"""IP and UDP, bytes."""


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
            wait_until(moved, PATIENCE, "the flow moves on")
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
    wait_until(lambda: stage.shares(2) <= left, PATIENCE, f"{had} gets nothing any more")
    now = stage.shares(8)
    if len(now) != 1 or not now <= left:
        yield f"{sorted(now)} answered a client that sticks to one of {sorted(left)}"


def _much(stage: Stage) -> Iterator[str]:
    for _ in stage.endpoints:
        done = stage.scene.transfer(_BYTES, **stage.how)
        if done.error or not done.intact:
            yield f"{_BYTES >> 20} MiB each way: {done}"


def _in_fragments(stage: Stage) -> Iterator[str]:
    with stage.scene.lab.places[stage.client].open(stage.scene.flow(1.0, **stage.how)) as held:
        for size in (1000, 4000, 1000, 20000):
            done = held.exchange(size=size)
            if not done.reply:
                yield f"a datagram of {size} bytes: {done.error}"


def _narrow(topology: Topology) -> AbstractContextManager[object]:
    return change.narrow(topology, "pod2b", _MTU)


def _too_big(stage: Stage) -> Iterator[str]:
    with stage.scene.lab.places[stage.client].open(stage.scene.flow(1.0, whole=True, **stage.how)) as held:
        if not held.exchange().reply:
            yield "no answer"
        if stage.mode == "userspace":
            stage.divergences.add("path-of-the-proxy")
            return
        told = [""]

        def is_told() -> bool:
            told.append(held.exchange(size=1500 - _HEADERS[stage.family]).error)
            return told[-1] == "EMSGSIZE"

        try:
            wait_until(is_told, PATIENCE, "the client is told")
        except TimeoutError:
            yield f"a datagram that is too long: {told[-3:]}"
        if held.mtu() != _MTU:
            yield f"MTU of the path: {held.mtu()}, not {_MTU}"
        if not held.exchange(size=_MTU - _HEADERS[stage.family]).reply:
            yield "a datagram that fits gets no answer"


def _affinity_passes(stage: Stage) -> Iterator[str]:
    began = last = time.monotonic()
    had, end = stage.shares(1), began + 10 * _WINDOW
    # Each connection within the window begins another one. Where this machine is too slow, it begins anew.
    while last - began < 2 * _WINDOW and last < end:
        now = stage.shares(1)
        late, last = time.monotonic() - last > _WINDOW / 2, time.monotonic()
        if late:
            had, began = now, last
        elif now != had:
            yield f"{now} answered within the window of {had}"
            return
        time.sleep(0.2)
    if stage.mode == "ipvs":
        stage.divergences.add("affinity-outlives-its-window")
        return

    def moved() -> bool:
        time.sleep(_WINDOW + 1)
        return stage.shares(1) != had

    # Chance may choose the same again: one of three, so often.
    try:
        wait_until(moved, 12 * (_WINDOW + 1), "another one answers")
    except TimeoutError:
        yield f"{had} answers still when the window is over"


def _come_and_go(stage: Stage) -> Iterator[str]:
    stage.scene.put()
    wait_until(lambda: stage.shares(1, _REFUSAL) == {"ECONNREFUSED"}, PATIENCE, "it is refused")
    stage.scene.put(*stage.endpoints)
    wait_until(lambda: stage.shares(48) == set(stage.endpoints), PATIENCE, "all endpoints answer again")
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
        "affinity-window",
        "an affinity lasts as long as connections come within its time, and no longer",
        (15,),
        Service(_TCP, type="NodePort", affinity=_WINDOW),
        ("pod1a", "pod1b", "pod2a"),
        _affinity_passes,
    ),
    Scenario(
        "large-datagrams",
        "datagrams that travel in fragments",
        (7, 8),
        Service(_UDP, type="NodePort"),
        ("pod1a",),
        _in_fragments,
    ),
    Scenario(
        "packet-too-big",
        "a client is told that its packets are too big for the endpoint's link, by the address that it uses",
        (7, 8),
        Service(_UDP, type="NodePort"),
        ("pod2b",),
        _too_big,
        setting=_narrow,
    ),
    Scenario(
        "narrow-link",
        "a transfer finds its way over a link with a smaller MTU",
        (7, 8),
        Service(_TCP, type="NodePort"),
        ("pod2b",),
        _much,
        setting=_narrow,
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
