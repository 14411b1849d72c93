"""Devices as rows: what the policy wants is attached, follows what happens to the devices, and goes away again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bpfproxy import api
from bpfproxy.datapath import attach, bpffs, device
from bpfproxy.datapath.device import Hook, XdpTarget
from bpfproxy.lab import netns
from bpfproxy.lab.wait import wait_until
from bpfproxy.model.device import DevicePlan, DeviceRole, NetworkState, Xdp
from bpfproxy.proxiers.base import Op
from bpfproxy.proxiers.ebpf.rows import DeviceKey
from bpfproxy.sources.devices import DeviceSource, network_state
from tests.lab.datapath import devices
from tests.lab.datapath.devices import Net
from tests.lab.device_run import Run

DEADLINE = 10.0
TC = {Hook.TC_IN: "bp_tc_in", Hook.TC_OUT: "bp_tc_out"}
XDP = {Hook.XDP: "bp_xdp", Hook.TC_IN: "bp_tc_in_left", Hook.TC_OUT: "bp_tc_out"}
PASSAGE = {Hook.TC_OUT: "bp_tc_out"}


@pytest.fixture(params=[True, False], ids=["tcx", "clsact"])
def tcx(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def runs(state: Path, compiled: Path) -> Iterator[Callable[..., Run]]:
    with contextlib.ExitStack() as stack:

        def start(*arguments: Any, **options: Any) -> Run:
            return stack.enter_context(Run(state, compiled, *arguments, **options))

        yield start


def default_route(net: Net, name: str, address: str) -> int:
    """A veth pair whose first end is the uplink."""
    index = net.veth(name, address)
    net.ip.route("add", dst="0.0.0.0/0", oif=index, scope="link")
    return index


# ---- the table ---------------------------------------------------------------------------------------------------


def test_a_node_is_served(node: Net, runs: Callable[..., Run], tcx: bool) -> None:
    default_route(node, "up0", "192.0.2.1/24")
    node.veth("veth7")
    bridge = node.add("br7", kind="bridge")
    port = node.veth("vethport")
    node.ip.link("set", index=port, master=bridge)
    run = runs(tcx)
    report = run.sync()
    assert report.failures == ()
    assert run.attached() == {
        "up0": TC,
        "up0p": PASSAGE,
        "veth7": TC,
        "veth7p": TC,  # its name fits, too
        "br7": TC,
        "vethportp": TC,
    }
    assert run.engine.sync().ops == 0
    assert run.engine.resync().ops == 0


def test_traffic_passes_the_programs(node: Net, runs: Callable[..., Run], tcx: bool) -> None:
    with Net() as client:
        index = node.veth("up0", "192.0.2.1/24", peer=client)
        client.address(client.index("up0p"), "192.0.2.2/24")
        node.ip.route("add", dst="0.0.0.0/0", oif=index, scope="link")
        run = runs(tcx)
        run.sync()
        before = devices.hits(run.loaded.maps)
        client.send("192.0.2.1")
        node.send("192.0.2.2")
        wait_until(lambda: devices.hits(run.loaded.maps)["bp_tc_in"] > before["bp_tc_in"], 5, "it came in")
        wait_until(lambda: devices.hits(run.loaded.maps)["bp_tc_out"] > before["bp_tc_out"], 5, "it went out")


def test_devices_that_come_and_go(node: Net, runs: Callable[..., Run], tcx: bool) -> None:
    default_route(node, "up0", "192.0.2.1/24")
    run = runs(tcx)
    run.sync()
    for _ in range(2):
        node.veth("veth7")
        assert run.sync().failures == ()
        assert run.attached()["veth7"] == TC
        node.delete("veth7")
        assert run.sync().failures == ()
        assert set(run.attached()) == {"up0", "up0p"}
        assert {index for _, index in run.hooks.pinned()} == {node.index("up0"), node.index("up0p")}
        assert run.engine.resync().ops == 0


def test_a_device_that_goes_between_looking_and_attaching(node: Net, runs: Callable[..., Run], tcx: bool) -> None:
    default_route(node, "up0", "192.0.2.1/24")
    run = runs(tcx)
    node.veth("veth7")
    seen = network_state()
    node.delete("veth7")
    report = run.sync(seen)
    assert report.failures == ()
    assert "veth7" not in run.attached()
    assert run.sync().failures == ()
    assert run.engine.resync().ops == 0


def test_a_device_that_comes_back_under_its_number_is_seen_at_the_resync(
    node: Net, runs: Callable[..., Run], tcx: bool
) -> None:
    index = default_route(node, "up0", "192.0.2.1/24")
    run = runs(tcx)
    run.sync()
    node.delete("up0")
    node.ip.link("add", ifname="up0", kind="veth", index=index, peer={"ifname": "up0p"})
    node.up(index)
    node.ip.route("add", dst="0.0.0.0/0", oif=index, scope="link")
    run.engine.set_node(run._config(network_state()))
    assert run.engine.resync().failures == ()
    assert run.attached()["up0"] == TC


def test_roles_change_with_the_default_route(node: Net, runs: Callable[..., Run], tcx: bool) -> None:
    first = default_route(node, "up0", "192.0.2.1/24")
    second = node.veth("up1", "198.51.100.1/24")
    run = runs(tcx)
    run.sync()
    assert (run.attached()["up0"], run.attached()["up1"]) == (TC, PASSAGE)
    node.ip.route("del", dst="0.0.0.0/0", oif=first, scope="link")
    node.ip.route("add", dst="0.0.0.0/0", oif=second, scope="link")
    run.sync()
    assert (run.attached()["up0"], run.attached()["up1"]) == (PASSAGE, TC)


def test_another_hand_is_repaired_at_the_resync(node: Net, state: Path, runs: Callable[..., Run], tcx: bool) -> None:
    index = default_route(node, "up0", "192.0.2.1/24")
    run = runs(tcx)
    run.sync()
    if tcx:
        attach.detach(state / "bpf" / "links", f"tc_in-{index}")
    else:
        node.ip.tc("del", "clsact", index)
    assert run.attached()["up0"] != TC if "up0" in run.attached() else True
    assert run.engine.resync().ops == 1
    assert run.attached()["up0"] == TC


def test_a_restart_takes_over_and_forgets_what_went(node: Net, runs: Callable[..., Run], tcx: bool) -> None:
    default_route(node, "up0", "192.0.2.1/24")
    node.veth("veth7")
    node.veth("gone0")
    first = runs(tcx)
    first.sync()
    node.delete("gone0")
    second = runs(tcx)
    assert first.table.in_force()
    assert not second.table.in_force()
    assert second.sync(complete=False).failures == ()
    assert second.attached() == {"up0": TC, "up0p": PASSAGE, "veth7": TC, "veth7p": TC}
    assert second.table.in_force()
    second.sync()
    assert len({index for _, index in second.hooks.pinned()}) == 4


def test_an_upgrade_waits_for_its_tables(node: Net, runs: Callable[..., Run], tcx: bool) -> None:
    default_route(node, "up0", "192.0.2.1/24")
    first = runs(tcx)
    first.sync()
    second = runs(tcx, held=True)
    assert second.sync(complete=False).failures == ()
    assert first.attached() == {"up0": TC, "up0p": PASSAGE}
    second.sync()
    assert second.attached() == {"up0": TC, "up0p": PASSAGE}
    assert second.engine.resync().ops == 0


def test_tunnels_get_the_programs_without_a_link_layer(node: Net, runs: Callable[..., Run], tcx: bool) -> None:
    node.ip.link("add", ifname="tun0", kind="tuntap", mode="tun")
    run = runs(tcx, device=("tun*",))
    run.sync()
    assert run.attached() == {"tun0": {Hook.TC_IN: "bp_tc_in_l3", Hook.TC_OUT: "bp_tc_out_l3"}}


# ---- XDP ---------------------------------------------------------------------------------------------------------


def test_xdp_where_it_is_asked_for(node: Net, runs: Callable[..., Run], tcx: bool) -> None:
    default_route(node, "up0", "192.0.2.1/24")
    node.veth("veth7")
    run = runs(tcx, acceleration="xdp")
    assert run.sync().failures == ()
    assert run.attached() == {"up0": XDP, "up0p": PASSAGE, "veth7": TC, "veth7p": TC}
    assert run.engine.resync().ops == 0
    again = runs(tcx, acceleration="tc")
    assert again.sync().failures == ()
    assert again.attached()["up0"] == TC
    assert device.xdp_program(node.index("up0")) == 0


def test_xdp_that_cannot_be_had_is_a_failure_and_tc_serves(node: Net, runs: Callable[..., Run], tcx: bool) -> None:
    index = node.veth("up0", "192.0.2.1/24", mtu=9000)
    node.ip.route("add", dst="0.0.0.0/0", oif=index, scope="link")
    run = runs(tcx, acceleration="xdp")
    [failure] = run.sync().failures
    assert failure.reason == ("cannot attach bp_xdp to XDP of up0: its MTU is too large for XDP; tc does it meanwhile")
    assert run.attached()["up0"] == TC
    assert run.engine.resync().failures == (failure,)
    node.ip.link("set", index=node.index("up0p"), mtu=1500)
    node.ip.link("set", index=index, mtu=1500)
    assert run.engine.sync().failures == ()
    assert run.attached()["up0"] == XDP


def test_another_xdp_program_stays_and_tc_serves(
    node: Net, state: Path, runs: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    """As with `auto` on a network card: veths stand in for it, since a plan is all that tells them apart."""
    index = default_route(node, "up0", "192.0.2.1/24")
    theirs, run = runs(), runs()
    attach.attach(state / "bpf" / "others", "xdp", theirs.programs["bp_xdp"], XdpTarget(index))
    plan = DevicePlan(index, "up0", DeviceRole.UPLINK, ingress=True, egress=True, xdp=Xdp.PREFERRED)
    key = DeviceKey(index)
    with caplog.at_level(logging.INFO):
        assert run.table.write([Op(key, plan)]) == []
    assert run.attached() == {"up0": TC}
    assert run.table.read() == {key: plan}
    number = next(number for number, name in theirs.names.items() if name == "bp_xdp")
    assert device.xdp_program(index) == number
    [event] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert event == (
        "event=xdp_refused device=up0 reason="
        f'"cannot attach bp_xdp to XDP of up0: another XDP program is on it (bp_xdp, id {number})" instead=tc'
    )
    # They go; ours does not come until the row changes or the agent starts again.
    attach.detach_all(state / "bpf" / "others")
    assert run.table.read() == {key: plan}
    assert run.table.write([Op(key, replace(plan, name="renamed"))]) == []
    assert run.attached() == {"up0": XDP}
    assert run.table.delete([Op(key, None)]) == []
    assert run.attached() == {}


def test_a_driver_without_xdp_is_served_by_tc(node: Net, runs: Callable[..., Run]) -> None:
    index = node.add("br0", kind="bridge")
    run = runs()
    plan = DevicePlan(index, "br0", DeviceRole.UPLINK, ingress=True, egress=True, xdp=Xdp.PREFERRED)
    assert run.table.write([Op(DeviceKey(index), plan)]) == []
    assert run.attached() == {"br0": TC}
    assert run.table.read() == {DeviceKey(index): plan}


# ---- with the source ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def followed(net: Net) -> Iterator[queue.Queue[NetworkState]]:
    """What the source says, which runs in a thread of its own."""
    states: queue.Queue[NetworkState] = queue.Queue()
    ends: queue.Queue[Callable[[], object]] = queue.Queue()

    async def follow() -> None:
        task = asyncio.create_task(DeviceSource().run(states.put))
        ends.put(functools.partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel))
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def run() -> None:
        with netns.inside(net.name):
            asyncio.run(follow())

    thread = threading.Thread(target=run)
    thread.start()
    end = ends.get(timeout=DEADLINE)
    try:
        yield states
    finally:
        end()
        thread.join()


def test_devices_are_followed_live(node: Net, runs: Callable[..., Run], tcx: bool) -> None:
    default_route(node, "up0", "192.0.2.1/24")
    run = runs(tcx)
    base = {"up0": TC, "up0p": PASSAGE}
    with followed(node) as states:

        def becomes(expected: dict[str, dict[Hook, str]]) -> None:
            """And nothing is left of devices that are gone."""
            while run.attached() != expected or len({index for _, index in run.hooks.pinned()}) != len(expected):
                run.sync(states.get(timeout=DEADLINE))

        becomes(base)
        for _ in range(3):
            node.ip.link("add", ifname="veth7", kind="veth", peer={"ifname": "pod7"})
            becomes({**base, "veth7": TC, "pod7": PASSAGE})
            node.delete("veth7")
            becomes(base)


# ---- cleanup -----------------------------------------------------------------------------------------------------


def test_cleanup_takes_everything_away(node: Net, state: Path, runs: Callable[..., Run], tcx: bool) -> None:
    index = default_route(node, "up0", "192.0.2.1/24")
    run = runs(tcx, acceleration="xdp")
    run.sync()
    node.veth("veth7")
    run.sync()
    node.delete("veth7")
    run.close()
    removed = api.cleanup(state)
    for name in (f"tc_in-{index}", f"tc_out-{index}", f"xdp-{index}"):
        assert f"link {name}" in removed
    assert device.xdp_program(index) == 0
    assert device.tcx_programs(index, "ingress") == device.tcx_programs(index, "egress") == []
    assert all(message.get_attr("TCA_KIND") != "clsact" for message in node.ip.get_qdiscs(index))
    assert not state.exists()
    assert api.cleanup(state) == []
    state.mkdir()
    bpffs.mount(state)
