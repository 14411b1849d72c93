"""How a scenario is played: on a Service in a running lab, by each client and kind of frontend, in each family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final

from bpfproxy.lab.cases import Agents, Endpoint, Service, Via
from bpfproxy.lab.divergences import Divergence
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from bpfproxy.lab.oracle import Mode
from bpfproxy.lab.scene import How, Scene
from bpfproxy.lab.topology import Topology
from bpfproxy.lab.wait import wait_until
from bpfproxy.parity.report import Cell

PATIENCE: Final = 20.0
"""Seconds that anything may take: far more than it needs, since a machine that is busy says nothing about a proxier."""
_FAMILIES: Final[tuple[Family, ...]] = (4, 6)
_WAYS: Final[tuple[tuple[str, Via], ...]] = (("pod1c", "ClusterIP"), ("node1", "ClusterIP"), ("client", "NodePort"))
"""A client and the kind of frontend that it goes by."""


@dataclass(frozen=True)
class Stage:
    """A Service with endpoints that all answer, and who talks to it."""

    scene: Scene
    endpoints: tuple[str, ...]
    client: str
    via: Via
    family: Family
    mode: Mode
    divergences: set[Divergence] = field(default_factory=set)
    """Documented ones that `play` met and expected."""

    @property
    def how(self) -> How:
        """What the scene is to be asked with."""
        return How(client=self.client, via=self.via, family=self.family)

    def leave_out(self, endpoint: str, *others: Endpoint) -> set[str]:
        """Take an endpoint away, or put `others` in its place, and wait until new connections know; who answers them
        now."""
        left = [one for one in self.endpoints if one != endpoint]
        self.scene.put(*left, *others)
        self.scene.settle(*left, client=self.client, timeout=PATIENCE)
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
    agents: Agents = field(default_factory=Agents)
    setting: Callable[[Topology], AbstractContextManager[object]] = lambda _: nullcontext()
    """What is different in the lab meanwhile."""


def play(lab: Lab, mode: Mode, scenario: Scenario) -> Cell:
    """Its cell."""
    with scenario.setting(lab.topology), ThreadPoolExecutor(len(_WAYS)) as threads:
        parts = list(threads.map(lambda way: list(_by(lab, mode, scenario, *way)), _WAYS))
    played = [one for part in parts for one in part]
    divergences = {divergence for _, stage in played for divergence in stage.divergences}
    return Cell(
        scenario.name,
        mode,
        len(played),
        tuple(f"{scenario.name}: {line}" for lines, _ in played for line in lines),
        tuple(sorted(divergences)),
    )


def _by(lab: Lab, mode: Mode, scenario: Scenario, client: str, via: Via) -> Iterator[tuple[list[str], Stage]]:
    """By one client and kind of frontend, in each family on a Service of its own: a place does one thing at a time."""
    for family in _FAMILIES:
        scene = Scene(lab, lab.directory / "manifests", scenario.service)
        stage = Stage(scene, scenario.endpoints, client, via, family, mode)
        try:
            scene.put(*scenario.endpoints)
            _wait_for_service(stage)
            found = list(scenario.play(stage))
        except TimeoutError as error:
            found = [str(error)]
        finally:
            scene.remove()
        yield [f"{client} to {via} IPv{family}: {line}" for line in found], stage


def _wait_for_service(stage: Stage) -> None:
    scene, endpoints = stage.scene, stage.endpoints
    if scene.service.affinity:
        wait_until(lambda: set(scene.shares(1, client=stage.client)) <= set(endpoints), PATIENCE, "it is served")
    else:
        scene.settle(*endpoints, client=stage.client, timeout=PATIENCE)
