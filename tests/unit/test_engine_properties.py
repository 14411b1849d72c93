"""The engine after any history: same as from scratch, sound after every single op, whatever fails or dies."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from bpfproxy.engine import Engine
from bpfproxy.model.event import Kind, Object, ObjectKey, Update
from bpfproxy.model.frontend import Frontend, ServicePlan
from bpfproxy.model.service import EndpointSlice, ObjectName, Service
from bpfproxy.plan import NodeConfig
from bpfproxy.proxiers.base import Op
from tests.unit.simproxier import DiedError, Kernel, SimProxier, assert_sound, leads_to
from tests.unit.strategies import MODES, SERVICES, SLICES, nodes, services, slice_lists, slices


class Sync(Struct, frozen=True):
    """Sync; ops whose turn is in `refused` (counted through all proxiers) fail."""

    refused: frozenset[int] = frozenset()


class Crash(Struct, frozen=True):
    """Sync, die after some ops, start anew."""

    ops: int


class Restart(Struct, frozen=True):
    """Die between two syncs, start anew; the source delivers in two parts."""

    first: int


class Move(Struct, frozen=True):
    """Another proxier for a Service."""

    service: ObjectName
    mode: str | None


class Resync(Struct, frozen=True):
    """Read back, and sync."""


Event = Service | EndpointSlice | ObjectKey | NodeConfig | Move | Sync | Crash | Restart | Resync

CHANGES: st.SearchStrategy[Event] = st.one_of(
    services(modes=st.sampled_from([None, None, None, "two", "three"])),
    slices(),
    slices(),
    st.sampled_from([ObjectKey("Service", name) for name in SERVICES]),
    st.sampled_from([ObjectKey("EndpointSlice", name) for name in SLICES]),
    st.builds(Move, st.sampled_from(SERVICES), st.sampled_from([None, "two"])),
    nodes(),
)
SYNCS: st.SearchStrategy[Event] = st.one_of(
    st.just(Sync()),
    st.builds(Sync, st.frozensets(st.integers(0, 12), max_size=6)),
    st.builds(Crash, st.integers(0, 8)),
    st.builds(Restart, st.integers(0, 6)),
    st.just(Resync()),
)
WORLDS: st.SearchStrategy[list[Event]] = st.tuples(
    st.tuples(*(services(names=st.just(name)) for name in SERVICES)), slice_lists(SERVICES[0]), nodes()
).map(lambda world: [*world[0], *world[1], world[2]])
"""Something to begin with."""
HISTORIES = st.lists(st.one_of(CHANGES, CHANGES, SYNCS), max_size=16)


class History:
    """Plays events on one engine after the other, over kernels that stay."""

    def __init__(self, world: list[Event]) -> None:
        self.objects: dict[ObjectKey, Object] = {}
        self.node = NodeConfig("n1")
        self.kernels: dict[str, Kernel] = {mode: {} for mode in MODES}
        self.boot()
        self.engine.update(Update(complete=True))
        for event in world:
            self.play(event)
        self.sync()

    def boot(self) -> None:
        self.proxiers = {mode: SimProxier(mode, self.kernels[mode], assert_sound) for mode in MODES}
        self.engine = Engine(self.proxiers, MODES[0], self.node)
        self.engine.start()
        self.fresh = True

    def play(self, event: Event) -> None:
        match event:
            case ObjectKey():
                self.objects.pop(event, None)
                self.engine.update(Update(removed=(event,)))
            case NodeConfig():
                self.node = event
                self.engine.set_node(event)
            case Move(name, mode):
                former = self.objects.get(ObjectKey("Service", name))
                if isinstance(former, Service):
                    self.play(replace(former, proxy_mode=mode))
            case Sync(refused):
                self.sync(refused)
            case Resync():
                self.engine.resync()
                self.fresh = False
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

        wanted = from_scratch(self.objects.values(), self.node)
        # What a refusal does to a Service that moved over a restart is not promised.
        served = self.served() if self.engine.pending == 0 and not (self.fresh and refused) else {}
        self.fresh = False
        for mode, proxier in self.proxiers.items():
            proxier.refuses = refuses
            proxier.look = Watch(self, proxier, dict(self.kernels[mode]), served)
        self.engine.sync()
        for proxier in self.proxiers.values():
            proxier.refuses, proxier.look = lambda op: False, assert_sound
        if self.engine.pending == 0:
            assert self.kernels == wanted

    def served(self) -> dict[ObjectName, set[Frontend]]:
        """Who is served where, by whichever proxier."""
        found: dict[ObjectName, set[Frontend]] = {}
        for kernel in self.kernels.values():
            for frontend, members in leads_to(kernel).items():
                found.setdefault(members.service_port.service, set()).add(frontend)
        return found

    def plans(self) -> dict[ObjectName, ServicePlan]:
        return {name: plan for name in SERVICES if (plan := self.engine.plan_of(name))}

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


class Watch(Struct):
    """After every op: every row is either what it was or what it is to be, no frontend leads nowhere, and what was
    served and shall be is served, also on its way from one proxier to another."""

    history: History
    proxier: SimProxier
    before: Kernel
    served: dict[ObjectName, set[Frontend]]

    def __call__(self, kernel: Kernel) -> None:
        assert_sound(kernel)
        wanted = self.proxier.render_node(self.history.engine.node_plan)
        served = self.history.served()
        for name, plan in self.history.plans().items():
            wanted.update(self.proxier.render(plan))
            assert self.served.get(name, set()) & plan.frontends.keys() <= served.get(name, set())
        for key, row in kernel.items():
            assert row in (self.before.get(key), wanted.get(key))


def from_scratch(objects: Iterable[Object], node: NodeConfig) -> dict[str, Kernel]:
    kernels: dict[str, Kernel] = {mode: {} for mode in MODES}
    engine = Engine({mode: SimProxier(mode, kernel) for mode, kernel in kernels.items()}, MODES[0], node)
    engine.update(Update(tuple(objects), complete=True))
    engine.sync()
    return kernels


@settings(max_examples=300, deadline=None)
@given(WORLDS, HISTORIES)
def test_any_history_ends_as_from_scratch(world: list[Event], events: list[Event]) -> None:
    history = History(world)
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
@given(WORLDS, st.lists(CHANGES, max_size=6))
def test_changed_and_changed_back_is_no_op(world: list[Event], events: list[Event]) -> None:
    history = History(world)
    objects, node = dict(history.objects), history.node
    for event in events:
        history.play(event)
    gone = tuple(key for key in history.objects if key not in objects)
    history.engine.update(Update(tuple(objects.values()), removed=gone))
    history.engine.set_node(node)
    assert history.engine.sync().ops == 0


@settings(max_examples=100, deadline=None)
@given(WORLDS, st.lists(CHANGES, max_size=6))
def test_a_restart_applies_the_difference_alone(world: list[Event], events: list[Event]) -> None:
    history = History(world)
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
