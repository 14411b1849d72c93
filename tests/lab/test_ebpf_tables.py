"""The service tables on real maps: what is written is read back, what is refused harms nobody, a crash leaves no
frontend that leads astray."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfproxy.datapath import loader
from bpfproxy.model.address import ANY4, Address
from bpfproxy.model.frontend import (
    Backend,
    Frontend,
    FrontendKind,
    FrontendSpec,
    NodePlan,
    OnEmpty,
    Pool,
    Scope,
    ServicePlan,
    ServicePortName,
)
from bpfproxy.model.service import ObjectName, Protocol, Scheduler
from bpfproxy.proxiers.base import Failure, Key, Op, Row
from bpfproxy.proxiers.ebpf import codec
from bpfproxy.proxiers.ebpf.proxier import EbpfProxier
from bpfproxy.proxiers.ebpf.rows import SetKey
from bpfproxy.proxiers.ebpf.snapshot import Maps
from bpfproxy.proxiers.ebpf.view import View
from tests.lab.conftest import NewMaps
from tests.tables import proxier_over

BACKENDS_MAX = 64
FRONTENDS_MAX = 8
SLOTS_MAX = 4096
GRACE = 10.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def maps(state: Path, new_maps: NewMaps) -> Maps:
    return new_maps(state / "bpf" / "maps", "sock_lb", frontends=FRONTENDS_MAX)


@contextlib.contextmanager
def opened(pins: Path) -> Iterator[Maps]:
    """Maps as another process gets them."""
    maps = loader.open_maps(pins)
    yield maps
    loader.close_maps(maps.values())


def open_proxier(maps: Maps, clock: Clock | None = None) -> EbpfProxier:
    return proxier_over(maps, grace_period=GRACE, clock=clock or Clock())


def backend(number: int, protocol: Protocol = Protocol.TCP) -> Backend:
    return Backend(Address(bytes([10, 0, number >> 8, number & 255])), 8080, protocol)


def plan(
    name: str,
    address: int,
    backends: tuple[Backend, ...],
    scheduler: Scheduler = Scheduler.RANDOM,
    draining: tuple[Backend, ...] = (),
) -> ServicePlan:
    service = ObjectName("ns", name)
    spec = FrontendSpec(
        ServicePortName(service, "web", Protocol.TCP),
        FrontendKind.CLUSTER_IP,
        Pool.CLUSTER,
        tuple(sorted(backends)),
        tuple(sorted(draining)),
        scheduler=scheduler,
    )
    return ServicePlan(service, {Frontend(Address(bytes([10, 96, 0, address])), 80, Protocol.TCP): spec})


def sync(proxier: EbpfProxier, applied: dict[Key, Row], wanted: dict[Key, Row]) -> list[Failure]:
    """What the engine does, without its bookkeeping."""
    ops = [Op(key, row) for key, row in wanted.items() if applied.get(key) != row]
    ops += [Op(key, None) for key in applied if key not in wanted]
    return proxier.apply(sorted(ops, key=proxier.phase))


def rows_of(proxier: EbpfProxier, *plans: ServicePlan) -> dict[Key, Row]:
    return {key: row for item in plans for key, row in proxier.render(item).items()}


def test_all_kinds_of_rows_are_read_back(maps: Maps) -> None:
    proxier = open_proxier(maps)
    service = ObjectName("ns", "web")
    members = (backend(1), Backend(Address(bytes([10, 0, 0, 2])), 1, Protocol.TCP, local=True))
    v6 = (Backend(Address(bytes(15) + b"\1"), 65535, Protocol.TCP),)
    name = ServicePortName(service, "", Protocol.TCP)
    plans = ServicePlan(
        service,
        {
            Frontend(Address(bytes([10, 96, 0, 1])), 1, Protocol.TCP): FrontendSpec(
                name, FrontendKind.CLUSTER_IP, Pool.CLUSTER, members, (backend(3),), affinity_timeout=86400
            ),
            Frontend(ANY4, 30000, Protocol.TCP): FrontendSpec(
                name, FrontendKind.NODE_PORT, Pool.LOCAL, on_empty=OnEmpty.DROP, scoped=True
            ),
            Frontend(ANY4, 30000, Protocol.TCP, Scope.INTERNAL): FrontendSpec(
                name, FrontendKind.NODE_PORT, Pool.CLUSTER, members, (backend(3),), affinity_timeout=86400
            ),
            Frontend(Address(b"\xfd" + bytes(15)), 65535, Protocol.TCP): FrontendSpec(
                name, FrontendKind.EXTERNAL_IP, Pool.CLUSTER, v6, scheduler=Scheduler.MAGLEV
            ),
        },
    )
    wanted = dict(proxier.render(plans))
    node = NodePlan(frozenset({Address(bytes([192, 0, 2, 1])), Address(b"\xfd" + bytes(15))}), (4, 6))
    wanted.update(proxier.render_node(node))
    assert sync(proxier, {}, wanted) == []
    assert proxier.read() == wanted
    assert open_proxier(maps).read() == wanted
    assert sync(proxier, wanted, {}) == []
    assert open_proxier(maps).read() == {}


services = st.dictionaries(
    st.sampled_from("abcd"),
    st.tuples(
        st.sets(st.integers(1, 5), max_size=4),
        st.sets(st.integers(6, 8), max_size=2),
        st.sampled_from(Scheduler),
    ),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(services, max_size=6))
def test_any_sequence_of_states_is_read_back_by_this_agent_and_the_next(
    maps: Maps, states: list[dict[str, tuple[set[int], set[int], Scheduler]]]
) -> None:
    clock = Clock()
    proxier = open_proxier(maps, clock)
    applied: dict[Key, Row] = proxier.read()
    for state in [*states, {}]:
        clock.now += GRACE
        wanted = rows_of(
            proxier,
            *(
                plan(name, ord(name), tuple(map(backend, some)), scheduler, tuple(map(backend, others)))
                for name, (some, others, scheduler) in state.items()
            ),
        )
        assert sync(proxier, applied, wanted) == []
        assert open_proxier(maps).read() == wanted
        applied = wanted


def test_a_full_backend_table_refuses_one_set_and_keeps_the_others(maps: Maps) -> None:
    clock = Clock()
    proxier = open_proxier(maps, clock)
    first = rows_of(proxier, plan("first", 1, tuple(map(backend, range(1, 41)))))
    assert sync(proxier, {}, first) == []
    second = rows_of(proxier, plan("second", 2, tuple(map(backend, range(101, 141)))))
    failures = sync(proxier, first, first | second)
    assert {failure.op.key for failure in failures} == set(second)
    assert any("--max-backends" in failure.reason for failure in failures)
    assert proxier.read() == first

    # Room is made, but only the grace period's end gives it away.
    assert sync(proxier, first, {}) == []
    assert sync(proxier, {}, second)
    clock.now += GRACE
    assert sync(proxier, {}, second) == []
    assert proxier.read() == second


def test_a_backend_of_two_services_is_two(maps: Maps) -> None:
    """Rule 16 is about an endpoint of a Service: it may leave one, and stay behind another."""
    proxier = open_proxier(maps)
    both = rows_of(proxier, plan("a", 1, (backend(1), backend(2))), plan("b", 2, (backend(1),)))
    assert sync(proxier, {}, both) == []
    before = {view.service: view for view in View(maps).backends() if view.address == "10.0.0.1"}
    assert before.keys() == {"ns/a", "ns/b"}
    left = rows_of(proxier, plan("a", 1, (backend(2),)), plan("b", 2, (backend(1),)))
    assert sync(proxier, both, left) == []
    [stays] = [view for view in View(maps).backends() if view.address == "10.0.0.1"]
    assert stays == before["ns/b"]
    row = maps["backends"].lookup(codec.U32.pack(before["ns/a"].id))
    assert row is not None
    assert not codec.decode_backend(row)[2], "it is no longer Serving"


def test_a_change_that_does_not_fit_keeps_the_state_before(maps: Maps) -> None:
    proxier = open_proxier(maps)
    before = rows_of(proxier, plan("web", 1, tuple(map(backend, range(1, 6)))))
    assert sync(proxier, {}, before) == []
    after = rows_of(proxier, plan("web", 1, tuple(map(backend, range(1, 80)))))
    failures = sync(proxier, before, after)
    assert [type(failure.op.key) for failure in failures] == [SetKey]
    assert proxier.read() == before


def test_a_full_frontend_map_refuses_the_rest_and_keeps_their_sets(maps: Maps) -> None:
    proxier = open_proxier(maps)
    plans = [plan(f"s{number}", number, (backend(1),)) for number in range(1, FRONTENDS_MAX + 4)]
    wanted = rows_of(proxier, *plans)
    failures = sync(proxier, {}, wanted)
    assert failures
    assert {type(failure.op.key) for failure in failures} == {Frontend}
    assert {failure.reason for failure in failures} <= {
        f"map frontends4 is full: {FRONTENDS_MAX} rows",
        f"frontends (--max-frontends): all {FRONTENDS_MAX - 1} are in use (0 in their grace period)",
    }
    refused = {failure.op.key for failure in failures}
    assert proxier.read() == {key: row for key, row in wanted.items() if key not in refused}


def test_slots_run_out_and_come_back(maps: Maps) -> None:
    clock = Clock()
    proxier = open_proxier(maps, clock)
    members = tuple(map(backend, range(1, 10)))
    plans = [plan(f"s{number}", number, members, Scheduler.MAGLEV) for number in range(1, 6)]
    failures = sync(proxier, {}, rows_of(proxier, *plans))
    assert any("--max-slots" in failure.reason for failure in failures)
    applied = proxier.read()
    assert applied
    clock.now += GRACE
    assert sync(proxier, applied, {}) == []
    clock.now += GRACE
    assert sync(proxier, {}, rows_of(proxier, plans[0])) == []


def test_a_set_with_a_frontend_is_not_removed(maps: Maps) -> None:
    proxier = open_proxier(maps)
    wanted = rows_of(proxier, plan("web", 1, (backend(1),)))
    assert sync(proxier, {}, wanted) == []
    set_key = next(key for key in wanted if isinstance(key, SetKey))
    assert [failure.op.key for failure in proxier.apply([Op(set_key, None)])] == [set_key]
    assert proxier.read() == wanted


def test_kill_9_amid_syncs_leaves_every_frontend_with_a_whole_set(state: Path, new_maps: NewMaps) -> None:
    pins = state / "bpf" / "maps"
    many = {"backends": 4096, "backend_stats": 4096, "slots": 65536, "sets": 256, "set_names": 256}
    maps = new_maps(pins, "sock_lb", frontends=256, **many)
    versions = [
        [plan(f"s{n}", n, tuple(backend(n * 16 + m) for m in members), scheduler) for n in range(1, 100)]
        for members, scheduler in (
            (range(8), Scheduler.RANDOM),
            (range(4, 12), Scheduler.MAGLEV),
            (range(1), Scheduler.RANDOM),
        )
    ]
    allowed = [rows_of(open_proxier(maps), *plans) for plans in versions]
    generator = random.Random(7)
    for _ in range(12):
        child = os.fork()
        if not child:
            try:
                proxier = proxier_over(loader.open_maps(pins), grace_period=0.0, clock=time.monotonic)
                applied = proxier.read()
                while True:
                    for wanted in (*allowed, {}):
                        assert sync(proxier, applied, wanted) == []
                        applied = dict(wanted)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        time.sleep(generator.uniform(0.05, 0.15))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with opened(pins) as as_left:
            found = open_proxier(as_left).read()
        for key, row in found.items():
            assert row in [version.get(key) for version in allowed]
            if isinstance(key, Frontend):
                assert row.set in found
