"""A whole lab: the topology with a peer in each place, and an agent for each node that wants one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bpfproxy.lab.layout import NODES, PLACES, SPOTS
from bpfproxy.lab.node import Agent
from bpfproxy.lab.place import Place
from bpfproxy.lab.topology import Topology


class Lab:
    """A context manager: entering brings up namespaces and peers, leaving ends every process and removes all.

    `xdp`: nodes whose uplinks are made ready for XDP. `unhooked`: whether there are places without hooks, too.
    """

    def __init__(self, *, xdp: Iterable[str] = (), unhooked: bool = False) -> None:
        self.topology = Topology(xdp)
        self._spots = PLACES if unhooked else SPOTS
        self.places: dict[str, Place] = {}
        """By the names in `layout.PLACES`."""
        self.agents: dict[str, Agent] = {}
        """By node; each is started by the lab's user."""

    @property
    def lab_id(self) -> str:
        """Part of the name of all that this lab makes."""
        return self.topology.lab_id

    @property
    def directory(self) -> Path:
        """For files that go with the lab."""
        return self.topology.directory

    def __enter__(self) -> Self:
        self.topology.__enter__()
        try:
            for spot in self._spots.values():
                place = Place(spot, self.lab_id, self.topology.netns(spot.name), self.topology.spot_cgroup(spot.name))
                self.places[spot.name] = place
                place.start()
            for place in self.places.values():
                if not place.spot.home:
                    place.serve()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._leave()

    def _leave(self) -> None:
        # The topology kills what is left in its cgroups; the processes are ended here to reap them.
        try:
            for agent in self.agents.values():
                agent.stop()
            for place in self.places.values():
                place.stop()
        finally:
            self.topology.__exit__(None, None, None)

    def agent(self, node: str, **options: Any) -> Agent:
        """The agent of a node, new or with new options (see `Agent`), not started. The old one has to be stopped."""
        if node not in NODES:
            raise ValueError(f"no such node: {node}")
        self.agents[node] = Agent(self.topology, node, **options)
        return self.agents[node]
