"""Connections of a client outside the cluster to a NodePort, by tc, beside direct ones to a pod; offloads are on.

client ── switch ── node1, with an agent's datapath ── the Service's pod, and another pod
              └──── node2, without ── a pod
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpfproxy import api
from bpfproxy.bench import stats
from bpfproxy.bench.figures import Aim, Figure, figure
from bpfproxy.bench.ground import BenchError, Ground
from bpfproxy.bench.tool import Tool, tool
from bpfproxy.lab import netns
from bpfproxy.lab.layout import CLUSTER_CIDRS, SPOTS, Family
from bpfproxy.lab.topology import UPLINK, Topology
from bpfproxy.model.address import parse_address
from bpfproxy.model.event import Object, Update
from bpfproxy.model.service import Endpoint, EndpointPort, EndpointSlice, ObjectName, Protocol, Service, ServicePort

NAME = "outside"
KINDS = {"request": ("TCP connect–request–close", Aim("≥", 0.98)), "stream": ("one TCP stream", Aim("≥", 0.99))}
"""As outside.c names them, with title and aim."""
HOST_ROUTED = "NodePort, host routing"

NODE, BACKEND, NEIGHBOUR, ELSEWHERE = "node1", "pod1a", "pod1b", "pod2a"
_SERVERS = (BACKEND, NEIGHBOUR, ELSEWHERE)
_PORT, _NODE_PORT = 8080, 30080
_MIB_PER_GIGABIT = 1e9 / 8 / (1 << 20)


class NotAsAskedError(BenchError):
    """Connections failed, went elsewhere, or were not translated."""


@dataclass(frozen=True)
class Arm:
    """One way to a server."""

    name: str
    family: Family
    spot: str
    port: int
    server: str
    """Which one answers."""

    def words(self, kind: str, count: int, *, verify: bool) -> list[object]:
        """As the generator takes them."""
        address = SPOTS[self.spot].address(self.family)
        return [kind, _SERVERS.index(self.server), int(verify), address, self.port, count]


@dataclass(frozen=True)
class Load:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of a block: one arm in one round."""


FULL = Load(25, 0.04)
QUICK = Load(5, 0.005)


def arms(family: Family, *, host_routing: bool) -> tuple[Arm, ...]:
    """The first is what the others are compared with."""
    direct = Arm("direct", family, ELSEWHERE, _PORT, ELSEWHERE)
    if host_routing:
        return direct, Arm(HOST_ROUTED, family, NODE, _NODE_PORT, BACKEND)
    return (
        direct,
        Arm("direct, by a node with programs", family, NEIGHBOUR, _PORT, NEIGHBOUR),
        Arm("NodePort", family, NODE, _NODE_PORT, BACKEND),
    )


def measure(ground: Ground, *, quick: bool) -> Iterator[Figure]:
    """Ratios direct / NodePort (1: the programs cost nothing), then what an operation costs: through the stack, then
    past it."""
    load = QUICK if quick else FULL
    for host_routing in (False, True):
        with (
            Topology() as topology,
            _serving(ground, topology, host_routing=host_routing) as state,
            _generator(ground, topology) as generator,
        ):
            for family in (4, 6):
                ways = arms(family, host_routing=host_routing)
                for kind, (title, aim) in KINDS.items():
                    for arm in ways:
                        _verify(state, generator, kind, arm)
                    yield from _figures(f"{title}, IPv{family}", kind, _interleave(generator, kind, ways, load), aim)


def _figures(title: str, kind: str, samples: dict[Arm, list[float]], aim: Aim) -> Iterator[Figure]:
    direct, *others = samples
    for arm in others:
        ratios = stats.paired_ratios(samples[direct], samples[arm])  # of rates: the direct one is the divisor
        aimed = arm.port == _NODE_PORT
        yield figure(NAME, f"{title}: {arm.name} / direct", "ratio", ratios, aim if aimed else None)
    for arm, values in samples.items():
        if arm is direct and others[0].name == HOST_ROUTED:
            continue  # it is there already
        if kind == "stream":
            yield figure(NAME, f"{title}: {arm.name}", "Gb/s", [1e9 / value / _MIB_PER_GIGABIT for value in values])
        else:
            yield figure(NAME, f"{title}: {arm.name}", "ns/op", values)


def _interleave(generator: Tool, kind: str, ways: tuple[Arm, ...], load: Load) -> dict[Arm, list[float]]:
    """Nanoseconds per operation, a value for each arm and round. The arms of a round come in random order."""
    counts = {arm: max(4, int(load.seconds * 1e9 / _run(generator, kind, arm, 20))) for arm in ways}
    samples: dict[Arm, list[float]] = {arm: [] for arm in ways}
    for _ in range(load.rounds):
        for arm in random.sample(ways, len(ways)):
            samples[arm].append(_run(generator, kind, arm, counts[arm]))
    return samples


def _run(generator: Tool, kind: str, arm: Arm, count: int, *, verify: bool = False) -> float:
    """Nanoseconds per operation, the mean of a block. Raises NotAsAskedError."""
    done, nanoseconds, wrong = map(int, generator.ask(*arm.words(kind, count, verify=verify)))
    if wrong:
        raise NotAsAskedError(f"{kind}, {arm.name}, IPv{arm.family}: {wrong} of {done} operations went wrong")
    return nanoseconds / done


def _verify(state: Path, generator: Tool, kind: str, arm: Arm) -> None:
    """What was sent arrives at the right server, translated if it went to the NodePort, and only then."""
    before = _translated(state)
    _run(generator, kind, arm, 20, verify=True)
    translated = _translated(state) - before
    if (translated > 0) != (arm.port == _NODE_PORT):
        raise NotAsAskedError(f"{kind}, {arm.name}, IPv{arm.family}: {translated} connections were translated")


def _translated(state: Path) -> int:
    with api.open_view(state) as view:
        return view.node().connections["packet"]


def _objects() -> Iterator[Object]:
    name = ObjectName("bench", "outside")
    families: tuple[Family, ...] = (4, 6)
    vips = (parse_address("10.96.0.1"), parse_address("fd00:10:96::1"))
    yield Service(name, (ServicePort("web", Protocol.TCP, 80, _NODE_PORT),), type="NodePort", cluster_ips=vips)
    for family in families:
        yield EndpointSlice(
            ObjectName("bench", f"outside-ipv{family}"),
            name,
            family,
            (EndpointPort("web", Protocol.TCP, _PORT),),
            (Endpoint(parse_address(SPOTS[BACKEND].address(family)), node_name=NODE),),
        )


@contextmanager
def _serving(ground: Ground, topology: Topology, *, host_routing: bool) -> Iterator[Path]:
    """The datapath of NODE."""
    settings = ground.settings(
        acceleration="tc",
        cgroup=topology.node_cgroup(NODE),
        cluster_cidr=CLUSTER_CIDRS,
        device=(UPLINK,),
        host_routing=host_routing,
        pod_device=("pod*",),
        node_name=NODE,
    )
    with netns.inside(topology.netns(NODE)):
        with api.open_engine(settings) as engine:
            engine.update(Update(objects=tuple(_objects()), complete=True))
            report = engine.sync()
            if report.failures:
                raise NotAsAskedError(f"{len(report.failures)} rows were refused: {report.failures[0].reason}")
            yield settings.state_dir
        api.cleanup(settings.state_dir)


@contextmanager
def _generator(ground: Ground, topology: Topology) -> Iterator[Tool]:
    spaces = [topology.netns(spot) for spot in ("client", *_SERVERS)]
    for space in spaces:
        with netns.inside(space):
            # The arms share reply tuples: TIME_WAIT of one would delay another.
            netns.set_sysctl("ipv4.tcp_max_tw_buckets", 0)
            netns.set_sysctl("ipv4.tcp_no_metrics_save", 1)
    with tool(ground, "outside", [netns.DIRECTORY / space for space in spaces]) as generator:
        yield generator
