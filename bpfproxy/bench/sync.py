"""A full sync from decoded objects, stage by stage; a restart; attaching and switching of the programs."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bpfproxy import api
from bpfproxy.bench.figures import Aim, Figure, figure
from bpfproxy.bench.ground import Ground
from bpfproxy.bench.objects import cluster
from bpfproxy.model.event import Update
from bpfproxy.model.frontend import Frontend, NodePlan, ServicePlan

if TYPE_CHECKING:
    from bpfproxy.engine import Engine
    from bpfproxy.proxiers.base import Failure, Key, Op, Proxier, Row, Rows, Tended

NAME = "sync"
AIM = Aim("≤", 0.3)
SERVICES = 10_000

_clock = time.perf_counter


class Watched:
    """A proxier that notes when the engine calls it: the bounds of a sync's stages."""

    def __init__(self, inner: Proxier) -> None:
        self._inner = inner
        self.marks: dict[str, float] = {}
        """Moments in seconds; the first of each kind."""

    @property
    def name(self) -> str:
        """See `Proxier`; likewise below."""
        return self._inner.name

    def render(self, plan: ServicePlan) -> Rows:
        """The first plan that is rendered ends the planning."""
        if "planned" not in self.marks:
            self.marks["planned"] = _clock()
        return self._inner.render(plan)

    def render_node(self, plan: NodePlan) -> Rows:
        """The node's own plan comes last."""
        rows = self._inner.render_node(plan)
        self.marks["rendered"] = _clock()
        return rows

    def phase(self, op: Op) -> int:
        """As it is."""
        return self._inner.phase(op)

    def read(self) -> dict[Key, Row]:
        """As it is."""
        return self._inner.read()

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """What lies before is the diff."""
        self.marks["diffed"] = _clock()
        failures = self._inner.apply(ops)
        self.marks["applied"] = _clock()
        return failures

    def tend(self) -> Tended:
        """As it is."""
        return self._inner.tend()

    def activate(self, *, complete: bool) -> None:
        """Attach, or switch."""
        begin = _clock()
        self._inner.activate(complete=complete)
        self.marks.setdefault("activation", _clock() - begin)

    @property
    def precedes_conntrack(self) -> bool:
        """As it is."""
        return self._inner.precedes_conntrack

    def drained(self, preceded: Collection[Frontend]) -> bool:
        """As it is."""
        return self._inner.drained(preceded)

    def close(self) -> None:
        """As it is."""
        self._inner.close()


class Stages:
    """Seconds by stage, of several rounds."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = defaultdict(list)

    def add(self, **seconds: float) -> None:
        """One round."""
        for stage, value in seconds.items():
            self.samples[stage].append(value)


def measure(ground: Ground, *, quick: bool) -> Iterator[Figure]:
    """Rounds of: first sync on empty maps, resync, restart on full maps."""
    services, rounds = (500, 2) if quick else (SERVICES, 9)
    stages = Stages()
    for _ in range(rounds):
        _round(ground, services, stages)
    title = f"{services:,} services × 10"
    got = stages.samples
    yield figure(NAME, f"full sync, {title}", "s", got["total"], None if quick else AIM)
    for stage in ("store", "plan", "render", "diff", "apply", "collector"):
        yield figure(NAME, f"… {_STAGES[stage]}", "s", got[stage])
    yield figure(NAME, f"resync: read back and compare, {title}", "s", got["resync"])
    yield figure(NAME, f"restart: load programs and read back, {title}", "s", got["reopen"])
    yield figure(NAME, f"restart: sync to an empty delta, {title}", "s", got["restart"])
    yield figure(NAME, "first start: load programs and make maps", "s", got["open"])
    yield figure(NAME, "attach all programs", "ms", [1e3 * value for value in got["attach"]])
    yield figure(NAME, "switch all links at a restart", "ms", [1e3 * value for value in got["switch"]])


_STAGES = {
    "store": "store: take in the objects",
    "plan": "plan: what changed, plans, who owns what",
    "render": "render: plans to rows",
    "diff": "diff: rows to ops",
    "apply": "apply: ops to maps",
    "collector": "(in these: Python's garbage collector)",
}


def _round(ground: Ground, services: int, stages: Stages) -> None:
    settings = ground.settings()
    everything = Update(objects=cluster(services), complete=True)
    gc.collect()
    begin = _clock()
    with _open(settings) as (engine, watched):
        stages.add(open=_clock() - begin)
        _full_sync(engine, watched, everything, stages)
        gc.collect()
        begin = _clock()
        report = engine.resync()
        stages.add(resync=_clock() - begin)
        assert report.ops == 0, "a resync changed rows that were right"
    del engine, watched
    everything = Update(objects=cluster(services), complete=True)
    gc.collect()
    begin = _clock()
    with _open(settings) as (engine, watched):
        opened = _clock() - begin
        begin = _clock()
        engine.update(everything)
        report = engine.sync()
        activation = watched.marks["activation"]
        stages.add(reopen=opened, restart=_clock() - begin - activation, switch=activation)
        assert report.ops == 0, "a restart changed rows that were right"
    api.cleanup(settings.state_dir)


def _full_sync(engine: Engine, watched: Watched, everything: Update, stages: Stages) -> None:
    with _collecting() as collections:
        begin = _clock()
        engine.update(everything)
        stored = _clock()
        report = engine.sync()
        end = _clock()
    assert not report.failures, report.failures[0].reason
    marks = watched.marks
    stages.add(
        # Attaching is done once in a datapath's life, and has a figure of its own.
        total=end - begin - marks["activation"],
        store=stored - begin,
        plan=marks["planned"] - stored,
        render=marks["rendered"] - marks["planned"],
        diff=marks["diffed"] - marks["rendered"],
        apply=marks["applied"] - marks["diffed"],
        collector=sum(collections),
        attach=marks["activation"],
    )


@contextmanager
def _open(settings: Any) -> Iterator[tuple[Engine, Watched]]:
    made: list[Watched] = []

    def wrap(proxier: Proxier) -> Watched:
        made.append(Watched(proxier))
        return made[-1]

    with api.open_engine(settings, wrap) as engine:
        yield engine, made[0]


@contextmanager
def _collecting() -> Iterator[list[float]]:
    """Seconds that each run of the garbage collector took."""
    seconds: list[float] = []
    begin = 0.0

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal begin
        if phase == "start":
            begin = _clock()
        else:
            seconds.append(_clock() - begin)

    gc.callbacks.append(note)
    try:
        yield seconds
    finally:
        gc.callbacks.remove(note)
