"""Endpoints come and go under load: no connection breaks, no new one is refused."""

from __future__ import annotations

import contextlib
import random
from typing import Literal, Unpack

import pytest

from bpfproxy.lab import manifests
from bpfproxy.lab.cases import Service
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from bpfproxy.lab.place import Load
from bpfproxy.lab.scene import How, Scene
from tests.lab.conftest import BOTH, UDP

PODS = ("pod1a", "pod1b", "pod2a", "pod2b", "pod2c")
ROUNDS = 30

Scheduler = Literal["random", "round-robin", "maglev"]


@pytest.fixture(params=["bcc", "prebuilt"])
def running(lab: Lab, request: pytest.FixtureRequest) -> Lab:
    manifests.write(lab.directory / "manifests", "nodes", manifests.nodes())
    lab.agent("node1", manifests=lab.directory / "manifests", loader=request.param).start()
    return lab


@pytest.mark.parametrize("scheduler", ["random", "round-robin", "maglev"])
def test_churn(running: Lab, scheduler: Scheduler) -> None:
    scene = Scene(running, running.directory / "manifests", Service(BOTH, type="NodePort", scheduler=scheduler))
    scene.put(*PODS)
    scene.settle(*PODS)
    choose = random.Random(0)
    families: tuple[Family, ...] = (4, 6)
    with contextlib.ExitStack() as stack:

        def load(hold: bool, **how: Unpack[How]) -> Load:
            place = running.places[scene.probe(**how).client]
            return stack.enter_context(place.load(scene.flow(**how), hold=hold, interval=0.001))

        whole = [
            load(hold, client=client, family=family)
            for client in ("pod1c", "node1")
            for family in families
            for hold in (True, False)
        ]
        whole += [load(True, talk="udp-unconnected", port=UDP, client=client) for client in ("pod1c", "node1")]
        aborted = [load(True, port=UDP, client=client) for client in ("pod1c", "node1")]
        for _ in range(ROUNDS):
            places = choose.sample(PODS, choose.randint(1, len(PODS)))
            scene.put(*places)
            scene.settle(*places)
    for one in whole:
        report = one.stop()
        assert report.errors == {}
        assert report.answered == report.sent > ROUNDS
    for one in aborted:
        report = one.stop()
        # A connected UDP socket is told when its backend goes: by the first if it waits, by the second if it sends, by
        # the third if it asks for its peer.
        assert set(report.errors) <= {"ECONNABORTED", "EDESTADDRREQ", "ENOTCONN"}
        assert report.answered > ROUNDS


def test_many_changes_in_a_row(running: Lab) -> None:
    """Faster than an agent syncs: what counts is the last."""
    scene = Scene(running, running.directory / "manifests", Service(BOTH))
    scene.put("pod1a")
    scene.settle("pod1a")
    flow = scene.flow()
    choose = random.Random(1)
    with running.places["pod1c"].load(flow, hold=False, interval=0.001) as load:
        for _ in range(200):
            scene.put(*choose.sample(PODS, choose.randint(1, len(PODS))))
        scene.put("pod2c")
        scene.settle("pod2c")
    assert load.stop().errors == {}
