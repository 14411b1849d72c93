"""A link of 1400 bytes behind the node: ICMP errors that quote the backend come to the client as being about the VIP,
so it learns the path's MTU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from bpfproxy.lab import change
from bpfproxy.lab.layout import Family
from bpfproxy.lab.topology import Topology
from bpfproxy.lab.wait import wait_until
from tests.lab.conftest import UDP, Stage

MTU = 1400
HEADERS: dict[Family, int] = {4: 28, 6: 48}
"""IP and UDP, bytes."""
ALL = ("tc", "xdp", "tc-host-routing", "xdp-host-routing")

Narrow = Callable[[Topology], AbstractContextManager[object]]


def to_the_pod(pod: str) -> Narrow:
    """The link of a pod is narrow."""
    return lambda topology: change.narrow(topology, pod, MTU)


def between_the_nodes(topology: Topology) -> AbstractContextManager[object]:
    """Packets to the pod go by a second link between the nodes, which is narrow."""
    return change.link(topology, "node1", "node2", "eth1", to=["pod2a"], mtu=MTU)


WAYS = [
    pytest.param(to_the_pod("pod1a"), "pod1a", id="local"),
    pytest.param(to_the_pod("pod2a"), "pod2a", id="remote"),
    pytest.param(between_the_nodes, "pod2a", id="between"),
]


@pytest.mark.parametrize("outside", ALL, indirect=True)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("narrow", "backend"), WAYS)
def test_tcp_learns_the_mtu(stage: Stage, narrow: Narrow, backend: str, family: Family) -> None:
    scene = stage(backend)
    with narrow(scene.lab.topology):
        scene.settle(backend, client="client")
        done = scene.transfer(1 << 20, timeout=10, client="client", family=family, via="LoadBalancer")
    assert done.error == ""
    assert done.intact
    assert done.mtu == MTU


@pytest.mark.parametrize("outside", ALL, indirect=True)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("narrow", "backend"), WAYS)
def test_udp_is_told(stage: Stage, narrow: Narrow, backend: str, family: Family) -> None:
    scene = stage(backend)
    flow = scene.flow(1.0, client="client", family=family, via="LoadBalancer", port=UDP, whole=True)
    place = scene.lab.places["client"]
    with narrow(scene.lab.topology), contextlib.ExitStack() as stack:
        scene.settle(backend, client="client")
        opened = stack.enter_context(place.open(flow))
        assert opened.exchange().reply is not None
        assert opened.mtu() == 1500
        # Errors about the MTU are no more than so many a second.
        wait_until(
            lambda: opened.exchange(size=1500 - HEADERS[family]).error == "EMSGSIZE", 5, "the client's socket is told"
        )
        assert opened.mtu() == MTU
        outcome = opened.exchange(size=MTU - HEADERS[family])
        assert outcome.reply is not None
        assert outcome.reply.place == backend


@pytest.mark.parametrize("outside", ALL, indirect=True)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("backend", ["pod1a", "pod2a"], ids=["local", "remote"])
def test_the_backend_learns_the_mtu_of_the_way_back(stage: Stage, backend: str, family: Family) -> None:
    """Replies leave by a narrow device, and the client asks for segments that do not fit."""
    scene = stage(backend)
    with change.link(scene.lab.topology, "node1", "client", "other0", to=["client"], mtu=MTU) as sent:
        scene.settle(backend, client="client")
        before = sent()
        done = scene.transfer(1 << 20, timeout=10, client="client", family=family, via="LoadBalancer")
        assert done.error == ""
        assert done.intact
        assert done.mtu == 1500
        assert sent() - before > 1 << 20
