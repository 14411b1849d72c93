"""What the programs of the packet level cost, by BPF_PROG_TEST_RUN: no device, no stack, nothing but the program.

A small program writes each packet anew and tail-calls the one that is measured, so a hit is a hit each time, and flows
and destinations can be any number. What it takes itself is measured by calling one that does nothing, and taken off.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bpfproxy import api
from bpfproxy.bench import stats, wire
from bpfproxy.bench.figures import Aim, Figure, figure
from bpfproxy.bench.frame import check_frame
from bpfproxy.bench.ground import BenchError, Ground
from bpfproxy.bench.traffic import ENDLESS, LAYERS, Layer, Packets, Traffic, packets
from bpfproxy.model.address import Family
from bpfproxy.model.event import Update

NAME = "packet"
HIT = Aim("≤", 50)
NEW_ONE, NEW_TWO = Aim("≤", 500), Aim("≤", 1_000)
FLAT = Aim("≤", 1.1)

SERVICES = 10_000
REMOTE_ENDPOINTS = 100
"""So many that source ports are hardly ever taken."""
_FLOOR_ROWS = 131_072
"""Of the maps in packets.bpf.c."""
_WARM = 10_000


class NotTranslatedError(BenchError):
    """Packets were not treated as the figure would say."""


@dataclass(frozen=True)
class Load:
    """How much is measured."""

    services: int
    flows: int
    """Rows of each of our maps of flows; the default in a full run."""
    rounds: int
    hits: int
    """Packets of a block, of flows that are known."""
    new: int
    """Likewise, of new flows."""


FULL = Load(SERVICES, 131_072, 9, 60_000, 20_000)
QUICK = Load(100, 16_384, 2, 10_000, 2_000)


@dataclass(frozen=True)
class Arm:
    """One kind of packets."""

    title: str
    traffic: Traffic
    reason: str
    """What the datapath counts for each of them."""
    full: bool = False
    """New flows, with the tables full of others."""
    remote: bool = False
    aim: Aim | None = None

    @property
    def new(self) -> bool:
        """Whether each packet is of another flow."""
        return self.traffic.flows == ENDLESS

    @property
    def known(self) -> bool:
        """Whether they are of flows that have to be there before."""
        return self.reason == "reused"

    @property
    def translated(self) -> bool:
        """Whether they go to a backend."""
        return self.reason != "not_ours"


class Node:
    """A node with its datapath, and a generator beside it."""

    def __init__(self, place: wire.WireNode, services: int, rows: int, state: Path, generator: Packets) -> None:
        self.services = services
        self._rows = rows
        self.packets = generator
        self._state = state
        [directory] = (state / "bpf").glob("maps-*")
        self._maps = [directory / f"{name}{family}" for name in ("flows", "tuples") for family in wire.FAMILIES]
        self._ifindex = place.index("up0")
        with place.inside():
            found = api.attached_programs(state)
        # The pods' devices have tc alone, with the program that uplinks have without XDP.
        self._programs = {"xdp": found["xdp", self._ifindex], "tc": found["tc_in", place.index("pod0")]}
        self._flow = 0  # the next one that nobody has seen
        self._expected: dict[Layer, Counter[str]] = {layer: Counter() for layer in LAYERS}
        self._former = {layer: self._counted(layer) for layer in LAYERS}

    def run(self, layer: Layer, arm: Arm, count: int) -> float:
        """Nanoseconds of a packet of this kind, with the generator's part. The tables are made as the kind asks."""
        if arm.full:
            self._send(layer, arm, self._rows + self._rows // 8, arm.reason)
        else:
            for map_ in self._maps:
                self.packets.clear(map_)
            if arm.known:
                self._send(layer, arm, arm.traffic.flows, "translated")
        return self._send(layer, arm, count, arm.reason)

    def _send(self, layer: Layer, arm: Arm, count: int, reason: str) -> float:
        traffic = arm.traffic
        if arm.new:
            traffic = replace(traffic, first=self._flow)
            self._flow += count
        self.packets.make(traffic)
        self._expected[layer][reason] += count
        return self.packets.test(layer, self._programs[layer], count, self._ifindex).nanoseconds

    def verify_frame(self, layer: Layer, arm: Arm) -> None:
        """See what becomes of a packet of this kind. Raises NotTranslatedError."""
        self.run(layer, arm, 1)
        frame = self.packets.test(layer, self._programs[layer], 1, self._ifindex).frame  # of the packet that comes next
        self._flow += arm.new
        if wrong := check_frame(frame, arm.traffic, translated=arm.translated, remote=arm.remote):
            raise NotTranslatedError(f"{layer}, {arm.title}: {wrong}")

    def verify_counts(self, layer: Layer) -> None:
        """See that all packets since the last time were treated as their kinds ask for. Raises NotTranslatedError."""
        found, expected = self._counted(layer) - self._former[layer], self._expected[layer]
        if any(found[reason] < count for reason, count in expected.items()):
            raise NotTranslatedError(f"{layer}: expected {dict(expected)}, the datapath counted {dict(found)}")
        self._former[layer] += found
        expected.clear()

    def _counted(self, layer: Layer) -> Counter[str]:
        with api.open_view(self._state) as view:
            return Counter(view.node().metrics["xdp" if layer == "xdp" else "tc_in"])


def measure(ground: Ground, *, quick: bool) -> Iterator[Figure]:
    """Nanoseconds of a packet: of the least that a program can do, then of ours, at both layers in both families."""
    load = QUICK if quick else FULL
    far = wire.make_far(ground)
    with packets(ground, far) as generator:
        yield from _floors(generator, load)
    with _node(ground, far, 1, load.flows) as one, _node(ground, far, load.services, load.flows) as many:
        for layer in LAYERS:
            for family in wire.FAMILIES:
                yield from _programs(many, layer, family, load)
            yield from _flat(one, many, layer, load)


@contextmanager
def _node(ground: Ground, far: str, services: int, flows: int) -> Iterator[Node]:
    place = wire.make_node(ground, f"of-{services}", far)
    cgroup = ground.hooked / place.name
    cgroup.mkdir()
    settings = ground.settings(
        acceleration="xdp",
        cgroup=cgroup,
        device=("up0", "up1"),
        max_flows=flows,
        pod_device=("pod0",),
        snat_ports="1024-63000",
    )
    objects = list(wire.services(services - 1))
    objects += wire.service(services - 1, families=wire.FAMILIES)
    objects += wire.service(services, remote=True, endpoints=REMOTE_ENDPOINTS, families=wire.FAMILIES)
    with place.inside(), api.open_engine(settings) as engine:
        engine.update(Update(objects=tuple(objects), complete=True))
        report = engine.sync()
        if report.failures:
            raise NotTranslatedError(f"{len(report.failures)} rows were refused: {report.failures[0].reason}")
        with packets(ground, place.netns) as generator:
            yield Node(place, services, flows, settings.state_dir, generator)
    with place.inside():
        api.cleanup(settings.state_dir)


def _arms(node: Node, family: Family, aimed: bool) -> list[Arm]:
    """All kinds of packets."""
    local = Traffic(family, wire.VIP[family] + node.services - 1)
    remote = Traffic(family, wire.VIP[family] + node.services)
    nobody = Traffic(family, wire.VIP[family] + (1 << 20))
    warm_local, warm_remote = replace(local, flows=_WARM), replace(remote, flows=_WARM)
    new_local, new_remote = replace(local, flows=ENDLESS), replace(remote, flows=ENDLESS)
    hit, one, two = (aim if aimed else None for aim in (HIT, NEW_ONE, NEW_TWO))
    return [
        Arm("hit, backend on the node", local, "reused", aim=hit),
        Arm("hit, remote backend", remote, "reused", remote=True, aim=hit),
        Arm("10,000 flows, backend on the node", warm_local, "reused"),
        Arm("10,000 flows, remote backend", warm_remote, "reused", remote=True),
        Arm("new flow, one entry", new_local, "translated", aim=one),
        Arm("new flow, one entry, evicting", new_local, "translated", full=True),
        Arm("new flow, two entries", new_remote, "translated", remote=True, aim=two),
        Arm("new flow, two entries, evicting", new_remote, "translated", full=True, remote=True),
        Arm("not ours", nobody, "not_ours"),
    ]


def _programs(node: Node, layer: Layer, family: Family, load: Load) -> Iterator[Figure]:
    arms = _arms(node, family, aimed=layer == "xdp" and family == 4)
    for arm in arms:
        node.verify_frame(layer, arm)
        node.run(layer, arm, 1_000)
    node.verify_counts(layer)
    runs = {arm.title: partial(node.run, layer, arm, load.new if arm.new else load.hits) for arm in arms}
    samples = _rounds(node.packets, layer, family, runs, load)
    node.verify_counts(layer)
    for arm in arms:
        yield figure(NAME, f"{LAYERS[layer]}, IPv{family}: {arm.title}", "ns", samples[arm.title], arm.aim)


def _rounds(
    generator: Packets, layer: Layer, family: Family, runs: Mapping[str, Callable[[], float]], load: Load
) -> dict[str, list[float]]:
    """Nanoseconds by title and round, as a run of the program alone would take: without making the packet, but with
    the loop that BPF_PROG_TEST_RUN is. The runs of a round come in random order."""
    nothing = f"{layer}_nothing"
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(load.rounds):
        generator.make(Traffic(family, wire.VIP[family]))
        empty = generator.bare(layer, nothing, load.hits)
        making = generator.test(layer, nothing, load.hits).nanoseconds
        for title in random.sample(list(runs), len(runs)):
            samples[title].append(runs[title]() - making + empty)
    return samples


# ---- what does not depend on us ----------------------------------------------------------------------------------


class Floors:
    """One operation on one map of packets.bpf.c."""

    def __init__(self, generator: Packets, load: Load) -> None:
        self._packets = generator
        self._load = load
        self._flow = 0

    def find(self, family: Family, map_: str, flows: int) -> float:
        """Look up rows that are there."""
        if map_ != "array":
            self._packets.clear(map_)
            self._send(family, f"insert_{map_}", flows, flows)
        return self._send(family, f"find_{map_}", self._load.hits, flows)

    def insert(self, family: Family, map_: str, *, full: bool) -> float:
        """Make rows that are not there; `full`: in the place of others."""
        if full:
            self._send(family, f"insert_{map_}", _FLOOR_ROWS + _FLOOR_ROWS // 8, ENDLESS)
        else:
            self._packets.clear(map_)
        return self._send(family, f"insert_{map_}", self._load.new, ENDLESS)

    def runs(self, family: Family) -> Iterator[tuple[str, Callable[[], float]]]:
        """All of them, by title."""
        for kind, title in (("hash", "hash"), ("lru", "LRU")):
            map_, key = f"{kind}{family}", f"{title}, IPv{family} key"
            yield f"{key}: found, 1 row", partial(self.find, family, map_, 1)
            yield f"{key}: found, 10,000 rows", partial(self.find, family, map_, _WARM)
            yield f"{key}: new row", partial(self.insert, family, map_, full=False)
        yield f"{key}: new row, evicting", partial(self.insert, family, map_, full=True)
        if family == 4:
            yield "array: 1 row", partial(self.find, family, "array", 1)
            yield "array: 10,000 rows", partial(self.find, family, "array", _WARM)

    def _send(self, family: Family, program: str, count: int, flows: int) -> float:
        fresh = flows == ENDLESS
        self._packets.make(Traffic(family, wire.VIP[family], flows=flows, first=self._flow if fresh else 0))
        self._flow += count if fresh else 0
        return self._packets.test("xdp", program, count).nanoseconds


def _floors(generator: Packets, load: Load) -> Iterator[Figure]:
    """A loop without a program to speak of, XDP_TX, and one operation on one map."""
    generator.make(Traffic(4, wire.VIP[4]))
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(load.rounds):
        for program in _LOOPS:
            samples[program].append(generator.bare("xdp", program, load.hits))
    for program, title in _LOOPS.items():
        yield figure(NAME, f"floor: {title}", "ns", samples[program])
    floors = Floors(generator, load)
    for family in wire.FAMILIES:
        runs = dict(floors.runs(family))
        measured = _rounds(generator, "xdp", family, runs, load)
        for title in runs:
            yield figure(NAME, f"floor: {title}", "ns", measured[title])


_LOOPS = {"xdp_nothing": "a program that does nothing", "xdp_back": "XDP_TX, link addresses swapped"}


# ---- from one Service to many ------------------------------------------------------------------------------------


def _flat(one: Node, many: Node, layer: Layer, load: Load) -> Iterator[Figure]:
    """New flows beside one Service and beside many, to the last one, and to all in turns."""

    def to(index: int, destinations: int = 1) -> Arm:
        traffic = Traffic(4, wire.VIP[4] + index, flows=ENDLESS, destinations=destinations)
        return Arm("new flow, one entry", traffic, "translated")

    runs = {
        "one": (one, to(0)),
        "last": (many, to(many.services - 1)),
        "every": (many, to(0, many.services)),
    }
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(2 * load.rounds):
        many.packets.make(Traffic(4, wire.VIP[4]))
        nothing = many.packets.test(layer, f"{layer}_nothing", load.hits).nanoseconds
        for name in random.sample(list(runs), len(runs)):
            node, arm = runs[name]
            samples[name].append(node.run(layer, arm, load.new) - nothing)
    for node in (one, many):
        node.verify_counts(layer)
    title = f"{LAYERS[layer]}, IPv4: new flow, one entry, {many.services:,} Services / 1"
    last, every = (stats.paired_ratios(samples[name], samples["one"]) for name in ("last", "every"))
    yield figure(NAME, f"{title}: to the last", "ratio", last, FLAT if load is FULL else None)
    yield figure(NAME, f"{title}: to all in turns", "ratio", every)
