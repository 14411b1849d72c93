"""The engine over several proxiers: who serves what, and moves between them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bpfproxy.model.address import parse_address
from bpfproxy.model.event import ObjectKey, Update
from bpfproxy.model.frontend import Frontend
from tests.unit.engine_world import (
    DNS,
    DNS_IP,
    DNS_SLICE,
    EVERYTHING,
    TCP,
    WEB,
    WEB_IP,
    WEB_SLICE,
    World,
    endpoints,
    service,
)
from tests.unit.simproxier import (
    FrontendRow,
    NodeAddress,
)


@pytest.fixture
def pair() -> World:
    world = World("one", "two")
    world.engine.update(EVERYTHING)
    world.engine.sync()
    log: list[str] = []
    for proxier in world.proxiers.values():
        proxier.log = log
    return world


class TestSeveralProxiers:
    def test_the_annotation_chooses(self, pair: World) -> None:
        pair.engine.update(Update((service("other", "172.30.0.3", proxy_mode="two"),)))
        pair.engine.sync()
        frontend = Frontend(parse_address("172.30.0.3"), 80, TCP)
        assert (frontend in pair.kernels["one"], frontend in pair.kernels["two"]) == (False, True)

    def test_node_rows_are_everybodys(self, pair: World) -> None:
        for kernel in pair.kernels.values():
            assert NodeAddress(parse_address("192.0.2.10")) in kernel

    def test_they_know_whether_they_are_alone(self, pair: World) -> None:
        assert [proxier.shared for proxier in pair.proxiers.values()] == [True, True]
        pair.engine.release("two")
        pair.engine.sync()
        assert not pair.proxier.shared

    def test_what_is_served_before_conntrack(self) -> None:
        world = World("ebpf", "two")
        world.engine.update(EVERYTHING)
        world.engine.update(Update((replace(DNS, proxy_mode="two"),)))
        world.engine.sync()
        assert world.engine.preceded() == {WEB_IP}

    def test_a_move_writes_the_new_before_it_removes_the_old(self, pair: World) -> None:
        log = pair.proxier.log
        for modes, mode in ((("one", "two"), "two"), (("two", "one"), None)):
            log.clear()
            pair.engine.update(Update((replace(WEB, proxy_mode=mode),)))
            report = pair.engine.sync()
            assert report.ops == 4
            old, new = modes
            changes = [line for line in log if "active" not in line]
            assert changes == [f"{new}: +SetName", f"{new}: +Frontend", f"{old}: -Frontend", f"{old}: -SetName"]
            assert log.index(f"{new}: active") < log.index(f"{old}: -Frontend")
            assert (WEB_IP in pair.kernels[old], WEB_IP in pair.kernels[new]) == (False, True)

    def test_there_is_a_pause_while_both_serve(self, pair: World) -> None:
        seen: list[list[bool]] = []
        pair.pause = lambda: seen.append([WEB_IP in kernel for kernel in pair.kernels.values()])
        for move in (replace(WEB, proxy_mode="two"), replace(WEB, proxy_mode=None), DNS):
            pair.engine.update(Update((move,)))
            pair.engine.sync()
        assert seen == [[True, True], [True, True]]
        pair.boot()
        pair.engine.update(Update((replace(WEB, proxy_mode="two"), WEB_SLICE, DNS, DNS_SLICE), complete=True))
        pair.engine.sync()
        assert seen[2:] == [[True, True]]

    def test_a_move_over_a_restart(self, pair: World) -> None:
        engine = pair.boot()
        log: list[str] = []
        for proxier in pair.proxiers.values():
            proxier.log = log
        engine.update(Update((replace(WEB, proxy_mode="two"), WEB_SLICE, DNS, DNS_SLICE), complete=True))
        assert engine.sync().ops == 4
        assert [line for line in log if "active" not in line] == [
            "two: +SetName",
            "two: +Frontend",
            "one: -Frontend",
            "one: -SetName",
        ]
        assert log.index("two: active") < log.index("one: -Frontend")

    def test_the_old_one_serves_and_follows_until_the_new_one_can(self, pair: World) -> None:
        two = pair.proxiers["two"]
        two.refuses = lambda op: isinstance(op.row, FrontendRow)
        pair.engine.update(Update((replace(WEB, proxy_mode="two"),)))
        report = pair.engine.sync()
        assert [failure.op.key for failure in report.failures] == [WEB_IP]
        pair.engine.update(Update((endpoints("web", "10.0.0.9"),)))
        pair.engine.sync()
        assert pair.backends(WEB_IP) == ["10.0.0.9:8080"]
        two.refuses = lambda op: False
        pair.engine.sync()
        assert WEB_IP not in pair.kernels["one"]
        assert pair.backends(WEB_IP, "two") == ["10.0.0.9:8080"]

    def test_a_move_back_before_it_succeeded(self, pair: World) -> None:
        two = pair.proxiers["two"]
        two.refuses = lambda op: isinstance(op.row, FrontendRow)
        pair.engine.update(Update((replace(WEB, proxy_mode="two"),)))
        pair.engine.sync()
        pair.engine.update(Update((WEB,)))
        pair.engine.sync()
        pair.engine.sync()
        assert WEB_IP in pair.kernels["one"]
        assert not [key for key in pair.kernels["two"] if not isinstance(key, NodeAddress)]
        assert pair.engine.pending == 0

    def test_a_removed_service_leaves_the_proxier_that_it_asked_for(self, pair: World) -> None:
        pair.engine.update(Update((replace(WEB, proxy_mode="two"),)))
        pair.engine.sync()
        pair.engine.update(Update(removed=(ObjectKey("Service", WEB.name),)))
        pair.engine.sync()
        assert not any(WEB_IP in kernel for kernel in pair.kernels.values())

    def test_a_missing_mode_is_told_and_the_default_used(self, pair: World) -> None:
        pair.engine.update(Update((replace(WEB, proxy_mode="three"),)))
        report = pair.engine.sync()
        assert [str(note) for note in report.missing_modes] == [
            "Service ns/web: no proxy mode 'three': not offered here; served by one"
        ]
        assert WEB_IP in pair.kernels["one"]
        assert pair.engine.sync().missing_modes == ()

    def test_a_clash_between_proxiers_is_won_by_one(self, pair: World) -> None:
        pair.engine.update(Update((service("aaa", "172.30.0.1", proxy_mode="two"),)))
        pair.engine.sync()
        assert (WEB_IP in pair.kernels["one"], WEB_IP in pair.kernels["two"]) == (False, True)

    def test_failures_are_told_once_per_sync(self, pair: World) -> None:
        one = pair.proxiers["one"]
        one.refuses = lambda op: op.key == DNS_IP
        pair.engine.update(Update((replace(DNS, affinity_timeout=1), replace(WEB, proxy_mode="two"))))
        assert [failure.op.key for failure in pair.engine.sync().failures] == [DNS_IP]
