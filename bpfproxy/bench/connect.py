"""Connections through the hooks beside direct ones: operations in one process on one CPU, arms interleaved."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from bpfproxy import api
from bpfproxy.bench import stats
from bpfproxy.bench.figures import Aim, Figure, figure
from bpfproxy.bench.ground import BenchError, Ground
from bpfproxy.bench.objects import ENDPOINTS, POD4, POD6, VIP4, VIP6, address, cluster, target
from bpfproxy.bench.tool import Tool, tool
from bpfproxy.model.address import Family, format_address
from bpfproxy.model.event import Update
from bpfproxy.model.service import Scheduler

NAME = "connect"
AIM = Aim("≥", 0.99)


class WrongAnswerError(BenchError):
    """Operations failed, or were answered from another address: no figure would mean anything."""


class Arm(Struct, frozen=True):
    """One way to do an operation."""

    kind: str
    """As connect.c names it."""
    name: str
    first: str
    """The address, or the first of `targets` addresses."""
    port: int
    targets: int = 1
    hooked: bool = True


class Group(Struct, frozen=True):
    """Arms that are compared: each one with the first."""

    title: str
    arms: tuple[Arm, ...]
    aim: Aim | None = None
    """For the ratio direct / VIP of the plain VIP."""


class Load(Struct, frozen=True):
    """How much is measured."""

    services: int
    rounds: int
    seconds: float
    """Of a block: one arm in one round."""


FULL = Load(10_000, 31, 0.06)
QUICK = Load(100, 7, 0.005)


def groups(services: int) -> list[Group]:
    """All comparisons, with `services` in the tables; the targets of traffic come behind them."""

    def vip(index: int, family: Family = 4) -> str:
        base = VIP4 if family == 4 else VIP6
        return format_address(address(family, base, services + index))

    pod4, pod6 = format_address(address(4, POD4)), format_address(address(6, POD6))
    first_vip = format_address(address(4, VIP4))

    def arms(kind: str, real: int, port: int, *more: Arm) -> tuple[Arm, ...]:
        """Direct, the same without any hook, the VIP. A plain cgroup's servers listen one port higher."""
        return (
            Arm(kind, "direct", pod4, real, ENDPOINTS),
            Arm(kind, "direct, no hooks attached", pod4, real + 1, ENDPOINTS, hooked=False),
            Arm(kind, "VIP", vip(0), port),
            *more,
        )

    tcp = "tcp-connect"
    return [
        Group("TCP connect–request–close", arms("tcp-request", 8090, 81), AIM),
        Group(
            "TCP connect–close",
            arms(
                tcp,
                8080,
                80,
                Arm(tcp, "VIP, round robin", vip(1), 80),
                Arm(tcp, "VIP, Maglev", vip(2), 80),
                Arm(tcp, "VIP, affinity", vip(3), 80),
            ),
            AIM,
        ),
        Group(
            f"TCP connect–close, all of {services:,} services",
            (
                Arm(tcp, "direct", pod4, 8080, ENDPOINTS * services),
                Arm(tcp, "VIP", first_vip, 80, services),
            ),
        ),
        Group(
            "TCP connect–close, IPv6",
            (Arm(tcp, "direct", pod6, 8080, ENDPOINTS), Arm(tcp, "VIP", vip(0, 6), 80)),
            AIM,
        ),
        Group("UDP connect–close", arms("udp-connect", 8080, 53)),
        Group("UDP sendto, unconnected", arms("udp-send", 8080, 53)),
        Group("UDP sendto and answer, unconnected", arms("udp-exchange", 8080, 53)),
    ]


def measure(ground: Ground, *, quick: bool) -> Iterator[Figure]:
    """Ratios direct / VIP (1: the hook costs nothing), then what an operation costs."""
    load = QUICK if quick else FULL
    schedulers = (None, Scheduler.ROUND_ROBIN, Scheduler.MAGLEV, None)
    objects = cluster(load.services)
    for index, scheduler in enumerate(schedulers):
        objects += target(load.services + index, affinity=index == 3, scheduler=scheduler)
    with api.open_engine(ground.settings()) as engine, _generator(ground) as generator:
        engine.update(Update(objects=objects, complete=True))
        report = engine.sync()
        if report.failures:
            raise WrongAnswerError(f"{len(report.failures)} rows were refused: {report.failures[0].reason}")
        for group in groups(load.services):
            for arm in group.arms:
                generator.verify(arm)
            yield from _figures(group, _interleave(generator, group.arms, load))


def _figures(group: Group, samples: dict[Arm, list[float]]) -> Iterator[Figure]:
    direct = samples[group.arms[0]]
    for arm in group.arms[1:]:
        ratios = stats.paired_ratios(direct, samples[arm])  # of rates: the direct one is the divisor
        aim = group.aim if arm.name == "VIP" else None
        yield figure(NAME, f"{group.title}: {arm.name} / direct", "ratio", ratios, aim)
    for arm in group.arms:
        yield figure(NAME, f"{group.title}: {arm.name}", "ns/op", samples[arm])
        if arm.name == "VIP":
            more = [vip - real for vip, real in zip(samples[arm], direct, strict=True)]
            yield figure(NAME, f"{group.title}: {arm.name} more than direct", "ns", more)


def _interleave(generator: Generator, arms: tuple[Arm, ...], load: Load) -> dict[Arm, list[float]]:
    """Nanoseconds per operation, a value for each arm and round. The arms of a round come in random order."""
    counts = {arm: generator.count_for(arm, load.seconds) for arm in arms}
    samples: dict[Arm, list[float]] = defaultdict(list)
    for _ in range(load.rounds):
        for arm in random.sample(arms, len(arms)):
            samples[arm].append(generator.run(arm, counts[arm]))
    return samples


class Generator:
    """The process that connect.c describes."""

    def __init__(self, tool: Tool) -> None:
        self._tool = tool
        self._random = random.Random()

    def run(self, arm: Arm, count: int, *, verify: bool = False) -> float:
        """Nanoseconds per operation, the mean of a block. Raises WrongAnswerError."""
        seed = self._random.getrandbits(63) | 1
        words = (arm.kind, int(arm.hooked), int(verify), arm.first, arm.targets, arm.port, count, seed)
        done, nanoseconds, wrong = map(int, self._tool.ask(*words))
        if wrong:
            raise WrongAnswerError(f"{arm.kind}, {arm.name}: {wrong} of {done} operations went wrong")
        return nanoseconds / done

    def verify(self, arm: Arm) -> None:
        """Every client sees the address that it asked for. Raises WrongAnswerError."""
        self.run(arm, 200, verify=True)

    def count_for(self, arm: Arm, seconds: float) -> int:
        """How many operations take about so long."""
        return max(20, int(seconds * 1e9 / self.run(arm, 50)))


@contextmanager
def _generator(ground: Ground) -> Iterator[Generator]:
    with tool(ground, "connect", [ground.plain, ground.hooked]) as process:
        yield Generator(process)
