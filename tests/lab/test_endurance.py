"""An agent that runs for weeks: whatever comes and goes, its descriptors stay the same, and its memory bounded."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bpfproxy import api
from bpfproxy.lab import manifests
from bpfproxy.lab.cases import Service
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.node import Agent, packet_level
from bpfproxy.lab.scene import Scene
from bpfproxy.lab.wait import wait_until
from tests.lab.conftest import BOTH

PODS = ("pod1a", "pod1b", "pod2a", "pod2b", "pod2c")
MODES = ("nftables", "iptables", "userspace", "ipvs")
"""The last may be missing in this kernel: then it is refused each time."""
DEADLINE = 60.0
GROWTH = 8 << 20
"""Bytes."""


def descriptors(pid: int) -> Counter[str]:
    """Of a process, how many of each kind."""
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        kinds[re.sub(r"\[\d+\]", "", str(entry.readlink()))] += 1
    return kinds


def memory(pid: int) -> int:
    """What a process has of its own, bytes."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) << 10


class Life:
    """What happens to the agent, a step at a time: it has dealt with one before the next comes."""

    def __init__(self, lab: Lab, agent: Agent, scene: Scene, tried: Scene) -> None:
        self._lab, self._agent, self._scene, self._tried = lab, agent, scene, tried
        self._choose = random.Random(0)
        self._former: list[str] = []

    def change(self) -> None:
        """Other endpoints."""
        places = self._former
        while sorted(places) == sorted(self._former):
            places = self._choose.sample(PODS, self._choose.randint(1, len(PODS)))
        self._former = places
        self._tells(lambda: self._scene.put(*places), "event=sync ")

    def device(self) -> None:
        """A pod comes and goes."""
        with self._lab.topology.ip("node1") as ip:
            self._tells(lambda: self._lab.topology.veth(ip, "pod9", "eth9", "pod1a"), "event=device_attached")
            index = ip.link_lookup(ifname="pod9")[0]
            self._tells(lambda: ip.link("del", index=index), "event=device_detached")

    def mode(self, mode: str) -> None:
        """A Service is tried with another mode, and goes back."""

        def put(annotations: dict[str, str]) -> None:
            objects = manifests.objects(self._tried.case)
            objects[0]["metadata"]["annotations"] = annotations
            manifests.write(self._tried.directory, self._tried.case.name, objects)

        began = len(self._agent.said().encode())
        self._tells(lambda: put({"bpfproxy.io/proxy-mode": mode}), "event=sync ")
        refused = "event=refused" in self._agent.said(began)
        self._tells(lambda: put({}), "event=sync " if refused else f"event=cleaned_up proxier={mode}")

    def _tells(self, do: Callable[[], object], event: str) -> None:
        began = len(self._agent.said().encode())
        do()
        wait_until(lambda: event in self._agent.said(began), DEADLINE, f"the agent says {event}")


def test_descriptors_and_memory_stay(lab: Lab) -> None:
    directory = lab.directory / "manifests"
    manifests.write(directory, "nodes", manifests.nodes())
    scene, tried = (Scene(lab, directory, Service(BOTH, type="LoadBalancer")) for _ in range(2))
    for one in (scene, tried):
        one.put("pod1a")
    agent = lab.agent("node1", manifests=directory, loader="prebuilt", options=packet_level("tc"))
    agent.start()
    life = Life(lab, agent, scene, tried)

    def lives(changes: int, devices: int, rounds: int) -> None:
        for _ in range(changes):
            life.change()
        for _ in range(devices):
            life.device()
        for _ in range(rounds):
            for mode in MODES:
                life.mode(mode)

    lives(50, 3, 2)  # all that is loaded at its first use
    status = api.read_status(agent.state)
    assert status is not None
    assert status.pid is not None
    pid = status.pid
    before, size = descriptors(pid), memory(pid)
    lives(500, 20, 5)
    assert agent.running
    assert descriptors(pid) == before
    assert memory(pid) - size < GROWTH
    agent.stop()
    agent.start()  # nothing that was tried is in its way
