"""The engine after any history: same as from scratch, sound after every single op, whatever fails or dies."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from bpfproxy.engine import Engine
from bpfproxy.model.event import Kind, Object, ObjectKey, Update
from bpfproxy.model.service import EndpointSlice, Service
from bpfproxy.plan import NodeConfig
from bpfproxy.proxiers.base import Op
from tests.unit.simproxier import DiedError, Kernel, SimProxier, assert_sound
from tests.unit.strategies import MODES, SERVICES, SLICES, nodes, services, slices


class Sync(Struct, frozen=True):
    """Sync; ops whose turn is in `refused` (counted through all proxiers) fail."""

    refused: frozenset[int] = frozenset()


class Crash(Struct, frozen=True):
    """Sync, die after some ops, start anew."""

    ops: int


class Restart(Struct, frozen=True):
    """Die between two syncs, start anew; the source delivers in two parts."""

    first: int


class Resync(Struct, frozen=True):
    """Read back, and sync."""


Event = Service | EndpointSlice | ObjectKey | NodeConfig | Sync | Crash | Restart | Resync

CHANGES: st.SearchStrategy[Event] = st.one_of(
    services(modes=st.sampled_from([None, None, None, "two", "three"])),
    slices(),
    slices(),
    st.sampled_from([ObjectKey("Service", name) for name in SERVICES]),
    st.sampled_from([ObjectKey("EndpointSlice", name) for name in SLICES]),
    nodes(),
)
SYNCS: st.SearchStrategy[Event] = st.one_of(
    st.just(Sync()),
    st.builds(Sync, st.frozensets(st.integers(0, 12), max_size=6)),
    st.builds(Crash, st.integers(0, 8)),
    st.builds(Restart, st.integers(0, 6)),
    st.just(Resync()),
)
HISTORIES = st.lists(st.one_of(CHANGES, CHANGES, SYNCS), max_size=16)


class History:
    """Plays events on one engine after the other, over kernels that stay."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, Object] = {}
        self.node = NodeConfig("n1")
        self.kernels: dict[str, Kernel] = {mode: {} for mode in MODES}
        self.boot()
        self.engine.update(Update(complete=True))

    def boot(self) -> None:
        self.proxiers = {mode: SimProxier(mode, self.kernels[mode], assert_sound) for mode in MODES}
        self.engine = Engine(self.proxiers, MODES[0], self.node)
        self.engine.start()

    def play(self, event: Event) -> None:
        match event:
            case ObjectKey():
                self.objects.pop(event, None)
                self.engine.update(Update(removed=(event,)))
            case NodeConfig():
                self.node = event
                self.engine.set_node(event)
            case Sync(refused):
                self.sync(refused)
            case Resync():
                self.engine.resync()
            case Crash(ops):
                self.crash(ops)
                self.boot()
                self.engine.update(Update(tuple(self.objects.values()), complete=True))
            case Restart(first):
                self.restart(first)
            case _:
                kind: Kind = "Service" if isinstance(event, Service) else "EndpointSlice"
                self.objects[ObjectKey(kind, event.name)] = event
                self.engine.update(Update((event,)))

    def sync(self, refused: frozenset[int] = frozenset()) -> None:
        turn = -1

        def refuses(op: Op) -> bool:
            nonlocal turn
            turn += 1
            return turn in refused

        before = {mode: dict(kernel) for mode, kernel in self.kernels.items()}
        wanted = from_scratch(self.objects.values(), self.node)

        for mode, proxier in self.proxiers.items():
            proxier.refuses = refuses
            proxier.look = RightBackends(before[mode], self.engine, proxier)
        self.engine.sync()
        for proxier in self.proxiers.values():
            proxier.refuses, proxier.look = lambda op: False, assert_sound
        if self.engine.pending == 0:
            assert self.kernels == wanted

    def crash(self, ops: int) -> None:
        for proxier in self.proxiers.values():
            proxier.die_after = ops
        with suppress(DiedError):
            self.engine.sync()

    def restart(self, first: int) -> None:
        """Nothing goes before the second part is there."""
        self.boot()
        everything = tuple(self.objects.values())
        before = {mode: set(kernel) for mode, kernel in self.kernels.items()}
        self.engine.update(Update(everything[:first]))
        self.engine.sync()
        for mode, kernel in self.kernels.items():
            assert before[mode] <= kernel.keys()
        self.engine.update(Update(everything[first:], complete=True))


class RightBackends:
    """After every op every row is either what it was or what it is to be, and no frontend leads nowhere."""

    def __init__(self, before: Kernel, engine: Engine, proxier: SimProxier) -> None:
        self.before = before
        self.engine = engine
        self.proxier = proxier

    def __call__(self, kernel: Kernel) -> None:
        assert_sound(kernel)
        wanted = self.proxier.render_node(self.engine.node_plan)
        for name in SERVICES:
            plan = self.engine.plan_of(name)
            if plan is not None:
                wanted.update(self.proxier.render(plan))
        for key, row in kernel.items():
            assert row in (self.before.get(key), wanted.get(key))


def from_scratch(objects: Iterable[Object], node: NodeConfig) -> dict[str, Kernel]:
    kernels: dict[str, Kernel] = {mode: {} for mode in MODES}
    engine = Engine({mode: SimProxier(mode, kernel) for mode, kernel in kernels.items()}, MODES[0], node)
    engine.update(Update(tuple(objects), complete=True))
    engine.sync()
    return kernels


@settings(max_examples=250, deadline=None)
@given(HISTORIES)
def test_any_history_ends_as_from_scratch(events: list[Event]) -> None:
    history = History()
    for event in events:
        history.play(event)
    history.sync()
    assert history.engine.pending == 0
    assert history.kernels == from_scratch(history.objects.values(), history.node)
    assert history.engine.sync().ops == history.engine.resync().ops == 0
    fresh = Engine({mode: SimProxier(mode, {}) for mode in MODES}, MODES[0], history.node)
    fresh.update(Update(tuple(history.objects.values()), complete=True))
    fresh.sync()
    assert history.engine.frontends() == fresh.frontends()
    assert history.engine.health_checks() == fresh.health_checks()
    assert history.engine.clashes == fresh.clashes


@settings(max_examples=100, deadline=None)
@given(st.lists(CHANGES, max_size=8), st.lists(CHANGES, max_size=6))
def test_changed_and_changed_back_is_no_op(first: list[Event], events: list[Event]) -> None:
    history = History()
    for event in first:
        history.play(event)
    history.sync()
    objects, node = dict(history.objects), history.node
    for event in events:
        history.play(event)
    gone = tuple(key for key in history.objects if key not in objects)
    history.engine.update(Update(tuple(objects.values()), removed=gone))
    history.engine.set_node(node)
    assert history.engine.sync().ops == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(CHANGES, max_size=10), st.lists(CHANGES, max_size=6))
def test_a_restart_applies_the_difference_alone(first: list[Event], events: list[Event]) -> None:
    history = History()
    for event in first:
        history.play(event)
    history.sync()
    stays = {mode: dict(kernel) for mode, kernel in history.kernels.items()}
    for event in events:
        history.play(event)
    history.boot()
    history.engine.update(Update(tuple(history.objects.values()), complete=True))
    report = history.engine.sync()
    differing = sum(
        before.get(key) != now.get(key)
        for before, now in ((stays[mode], history.kernels[mode]) for mode in MODES)
        for key in before.keys() | now.keys()
    )
    assert report.ops == differing
    assert {op.key for proxier in history.proxiers.values() for op in proxier.ops} == {
        key
        for mode in MODES
        for key in stays[mode].keys() | history.kernels[mode].keys()
        if stays[mode].get(key) != history.kernels[mode].get(key)
    }
