"""Programs at devices: XDP, tcx and clsact on real veths, side by side with the programs of others."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from bpfproxy.datapath import attach, clsact, device, libbpf, loader
from bpfproxy.datapath.attach import AttachError, Outcome
from bpfproxy.datapath.device import Hook, TcxTarget, XdpTarget
from bpfproxy.datapath.hooks import DeviceHooks
from bpfproxy.datapath.loader import Loaded
from bpfproxy.lab.wait import wait_until
from tests.lab.datapath import devices
from tests.lab.datapath.devices import Net

Hooks = Callable[..., DeviceHooks]


@pytest.fixture
def peer() -> Iterator[Net]:
    with Net() as made:
        yield made


@pytest.fixture(params=["tcx", "clsact"])
def hooks(request: pytest.FixtureRequest, node: Net, state: Path) -> Iterator[DeviceHooks]:
    made = DeviceHooks(state / "bpf", tcx=request.param == "tcx")
    yield made
    made.detach_all()


def program_id(loaded: Loaded, name: str) -> int:
    return int(libbpf.info(loaded.programs[name].fd, "prog").id)


def sees(loaded: Loaded, name: str, send: Callable[[], None]) -> bool:
    """Whether a program sees a datagram."""
    before = devices.hits(loaded.maps)[name]
    send()
    return bool(wait_until(lambda: devices.hits(loaded.maps)[name] > before, 5, f"{name} sees a packet"))


@pytest.mark.parametrize("loader_name", ["bcc", "prebuilt"])
def test_programs_of_either_loader_run(
    loader_name: str, compiled: Path, state: Path, node: Net, peer: Net, hooks: DeviceHooks
) -> None:
    index = node.veth("eth0", "192.0.2.1/24", peer=peer)
    peer.address(peer.index("eth0p"), "192.0.2.2/24")
    with loader.load(devices.spec(compiled, state / "bpf" / "maps"), loader_name) as loaded:  # type: ignore[arg-type]
        assert set(loaded.programs) == set(devices.PROGRAMS)
        for hook, name in ((Hook.TC_OUT, "bp_tc_out"), (Hook.XDP, "bp_xdp"), (Hook.TC_IN, "bp_tc_in_left")):
            assert hooks.attach(hook, index, loaded.programs[name]) is Outcome.CREATED
            assert hooks.attach(hook, index, loaded.programs[name]) is Outcome.UNCHANGED
        assert sees(loaded, "bp_xdp", lambda: peer.send("192.0.2.1"))
        assert sees(loaded, "bp_tc_in_left", lambda: peer.send("192.0.2.1"))
        assert sees(loaded, "bp_tc_out", lambda: node.send("192.0.2.2"))
        assert hooks.standing() == {
            (Hook.XDP, index): program_id(loaded, "bp_xdp"),
            (Hook.TC_IN, index): program_id(loaded, "bp_tc_in_left"),
            (Hook.TC_OUT, index): program_id(loaded, "bp_tc_out"),
        }


def test_a_program_is_replaced(node: Net, loaded: Loaded, other: Loaded, hooks: DeviceHooks) -> None:
    index = node.veth("eth0", "192.0.2.1/24")
    for hook, name in ((Hook.TC_OUT, "bp_tc_out"), (Hook.XDP, "bp_xdp"), (Hook.TC_IN, "bp_tc_in")):
        hooks.attach(hook, index, loaded.programs[name])
        assert hooks.attach(hook, index, other.programs[name]) is Outcome.UPDATED
        assert hooks.attach(hook, index, other.programs[name]) is Outcome.UNCHANGED
        assert hooks.standing()[hook, index] == program_id(other, name)
    assert len(hooks.pinned()) == 3
    assert device.xdp_program(index) == program_id(other, "bp_xdp")


def test_all_is_removed(node: Net, state: Path, loaded: Loaded, hooks: DeviceHooks) -> None:
    first, second = node.veth("eth0"), node.veth("eth1")
    for index in (first, second):
        hooks.attach(Hook.TC_OUT, index, loaded.programs["bp_tc_out"])
        hooks.attach(Hook.TC_IN, index, loaded.programs["bp_tc_in"])
    hooks.attach(Hook.XDP, first, loaded.programs["bp_xdp"])
    assert hooks.detach(Hook.TC_IN, first)
    assert not hooks.detach(Hook.TC_IN, first)
    assert hooks.detach_all() == [f"tc_in-{second}", f"xdp-{first}", f"tc_out-{first}", f"tc_out-{second}"]
    assert hooks.detach_all() == []
    assert hooks.standing() == {}
    assert not (state / "bpf" / "clsact").exists()
    assert attach.links(state / "bpf" / "links") == []
    for index in (first, second):
        assert device.xdp_program(index) == 0
        assert device.tcx_programs(index, "ingress") == device.tcx_programs(index, "egress") == []
        assert [q.get_attr("TCA_KIND") for q in node.ip.get_qdiscs(index) if q.get_attr("TCA_KIND") == "clsact"] == []


def test_what_is_left_of_a_vanished_device_is_forgotten(
    node: Net, loaded: Loaded, other: Loaded, hooks: DeviceHooks
) -> None:
    index = node.veth("eth0")
    programs = {Hook.XDP: "bp_xdp", Hook.TC_IN: "bp_tc_in", Hook.TC_OUT: "bp_tc_out"}
    for hook, name in programs.items():
        hooks.attach(hook, index, loaded.programs[name])
    node.delete("eth0")
    wait_until(lambda: hooks.standing() == {}, 5, "nothing runs")
    assert sorted(hooks.pinned()) == sorted((hook, index) for hook in programs)
    # It comes back under its number.
    node.ip.link("add", ifname="eth0", kind="veth", index=index)
    for hook, name in programs.items():
        assert hooks.attach(hook, index, other.programs[name]) is Outcome.CREATED
    assert hooks.standing() == {(hook, index): program_id(other, name) for hook, name in programs.items()}
    node.delete("eth0")
    assert len(hooks.detach_all()) == 3
    assert hooks.pinned() == []


def test_a_device_that_is_not_there(node: Net, loaded: Loaded, hooks: DeviceHooks) -> None:
    for hook, name in ((Hook.XDP, "bp_xdp"), (Hook.TC_IN, "bp_tc_in"), (Hook.TC_OUT, "bp_tc_out")):
        with pytest.raises(AttachError, match="the device is gone"):
            hooks.attach(hook, 4711, loaded.programs[name])
        hooks.detach(hook, 4711)
    assert hooks.standing() == {}


def test_another_xdp_program_is_named(node: Net, links: Path, others: Path, loaded: Loaded, other: Loaded) -> None:
    index = node.veth("eth0")
    attach.attach(others, "theirs", other.programs["bp_xdp"], XdpTarget(index))
    number = program_id(other, "bp_xdp")
    with pytest.raises(AttachError, match=rf"XDP of eth0: another XDP program is on it \(bp_xdp, id {number}\)") as no:
        attach.attach(links, "ours", loaded.programs["bp_xdp"], XdpTarget(index))
    assert no.value.code == errno.EBUSY
    assert device.xdp_program(index) == number


def test_a_jumbo_mtu_is_too_large(node: Net, links: Path, loaded: Loaded) -> None:
    with pytest.raises(AttachError, match="XDP of eth0: its MTU is too large for XDP") as no:
        attach.attach(links, "x", loaded.programs["bp_xdp"], XdpTarget(node.veth("eth0", mtu=9000)))
    assert no.value.code == errno.ERANGE


def test_generic_xdp_is_not_taken_unasked(node: Net, links: Path, loaded: Loaded) -> None:
    bridge = node.add("br0", kind="bridge")
    with pytest.raises(AttachError, match="XDP of br0: its driver has no native XDP") as no:
        attach.attach(links, "x", loaded.programs["bp_xdp"], XdpTarget(bridge))
    assert no.value.code == errno.EOPNOTSUPP
    assert attach.attach(links, "x", loaded.programs["bp_xdp"], XdpTarget(bridge, "generic")) is Outcome.CREATED


@pytest.mark.parametrize("kind", ["bridge", "macvlan", "vxlan", "tun"])
def test_tc_runs_on_all_kinds(kind: str, node: Net, loaded: Loaded, hooks: DeviceHooks) -> None:
    lower = node.veth("eth0")
    what: dict[str, dict[str, object]] = {
        "bridge": {},
        "macvlan": {"link": lower, "macvlan_mode": "bridge"},
        "vxlan": {"vxlan_id": 7, "vxlan_link": lower, "vxlan_port": 4789},
        "tun": {},
    }
    if kind == "tun":
        node.ip.link("add", ifname="tun0", kind="tuntap", mode="tun")
        index = node.index("tun0")
        programs = ("bp_tc_in_l3", "bp_tc_out_l3")
    else:
        index = node.add("dev0", kind=kind, **what[kind])
        programs = ("bp_tc_in", "bp_tc_out")
    for hook, name in zip((Hook.TC_IN, Hook.TC_OUT), programs, strict=True):
        hooks.attach(hook, index, loaded.programs[name])
    assert len(hooks.standing()) == 2


# ---- beside others -----------------------------------------------------------------------------------------------


def test_tcx_programs_of_others_run_before_ours(
    node: Net, peer: Net, state: Path, others: Path, loaded: Loaded, other: Loaded
) -> None:
    index = node.veth("eth0", "192.0.2.1/24", peer=peer)
    peer.address(peer.index("eth0p"), "192.0.2.2/24")
    attach.attach(others, "theirs", other.programs["bp_tc_in_left"], TcxTarget(index, "ingress"))
    hooks = DeviceHooks(state / "bpf", tcx=True)
    hooks.attach(Hook.TC_IN, index, loaded.programs["bp_tc_in"])
    theirs, ours = program_id(other, "bp_tc_in_left"), program_id(loaded, "bp_tc_in")
    assert device.tcx_programs(index, "ingress") == [theirs, ours]
    assert sees(loaded, "bp_tc_in", lambda: peer.send("192.0.2.1"))
    assert hooks.detach_all() == [f"tc_in-{index}"]
    assert device.tcx_programs(index, "ingress") == [theirs]


def qdiscs(net: Net, index: int) -> list[str]:
    return [message.get_attr("TCA_KIND") for message in net.ip.get_qdiscs(index)]


def filters(net: Net, index: int) -> list[tuple[str, int]]:
    found = net.ip.get_filters(index=index, parent=0xFFFFFFF2)
    return [(m.get_attr("TCA_OPTIONS").get_attr("TCA_BPF_NAME"), m["info"] >> 16) for m in found if m["handle"]]


def test_clsact_and_filters_of_others_stay(node: Net, state: Path, loaded: Loaded, other: Loaded) -> None:
    index = node.veth("eth0")
    node.ip.tc("add", "clsact", index)
    fd = other.programs["bp_tc_in"].fd
    parent = 0xFFFFFFF2
    node.ip.tc(
        "add-filter", "bpf", index, 1, fd=fd, name="theirs", parent=parent, prio=1, protocol=3, direct_action=True
    )
    hooks = DeviceHooks(state / "bpf", tcx=False)
    hooks.attach(Hook.TC_IN, index, loaded.programs["bp_tc_in"])
    assert filters(node, index) == [("theirs", 1), ("bpfproxy", 1100)]
    assert hooks.detach_all() == [f"tc_in-{index}"]
    assert filters(node, index) == [("theirs", 1)]
    # The qdisc is theirs, even when it is empty.
    node.ip.tc("del-filter", "bpf", index, 1, parent=parent, prio=1, protocol=3)
    hooks.attach(Hook.TC_IN, index, loaded.programs["bp_tc_in"])
    hooks.detach_all()
    assert "clsact" in qdiscs(node, index)


def test_a_qdisc_of_ours_stays_while_others_use_it(node: Net, state: Path, loaded: Loaded, other: Loaded) -> None:
    index = node.veth("eth0")
    hooks = DeviceHooks(state / "bpf", tcx=False)
    hooks.attach(Hook.TC_OUT, index, loaded.programs["bp_tc_out"])
    node.ip.tc(
        "add-filter",
        "bpf",
        index,
        1,
        fd=other.programs["bp_tc_in"].fd,
        name="theirs",
        parent=0xFFFFFFF2,
        prio=1,
        protocol=3,
        direct_action=True,
    )
    hooks.detach_all()
    assert filters(node, index) == [("theirs", 1)]


def test_a_filter_of_another_bpfproxy_is_left_alone(node: Net, state: Path, loaded: Loaded, other: Loaded) -> None:
    index = node.veth("eth0")
    clsact.attach(state / "bpf" / "theirs", Hook.TC_IN, index, other.programs["bp_tc_in"])
    hooks = DeviceHooks(state / "bpf", tcx=False)
    with pytest.raises(AttachError, match="tc ingress of eth0: another bpfproxy is there"):
        hooks.attach(Hook.TC_IN, index, loaded.programs["bp_tc_in"])
    assert hooks.detach_all() == []
    assert filters(node, index) == [("bpfproxy", 1100)]


def test_a_filter_that_another_hand_removed_is_missed_and_made_again(node: Net, state: Path, loaded: Loaded) -> None:
    index = node.veth("eth0")
    hooks = DeviceHooks(state / "bpf", tcx=False)
    hooks.attach(Hook.TC_IN, index, loaded.programs["bp_tc_in"])
    node.ip.tc("del", "clsact", index)
    assert hooks.standing() == {}
    assert hooks.attach(Hook.TC_IN, index, loaded.programs["bp_tc_in"]) is Outcome.CREATED
    assert hooks.standing() == {(Hook.TC_IN, index): program_id(loaded, "bp_tc_in")}


def test_an_ingress_qdisc_of_others_is_in_the_way(node: Net, state: Path, loaded: Loaded) -> None:
    index = node.veth("eth0")
    node.ip.tc("add", "ingress", index)
    hooks = DeviceHooks(state / "bpf", tcx=False)
    with pytest.raises(AttachError, match="eth0"):
        hooks.attach(Hook.TC_OUT, index, loaded.programs["bp_tc_out"])
    assert hooks.standing() == {}


def test_from_clsact_to_tcx(node: Net, state: Path, loaded: Loaded) -> None:
    index = node.veth("eth0")
    DeviceHooks(state / "bpf", tcx=False).attach(Hook.TC_IN, index, loaded.programs["bp_tc_in"])
    hooks = DeviceHooks(state / "bpf", tcx=True)
    hooks.attach(Hook.TC_IN, index, loaded.programs["bp_tc_in"])
    assert hooks.pinned() == [(Hook.TC_IN, index)]
    assert "clsact" not in qdiscs(node, index)
    assert device.tcx_programs(index, "ingress") == [program_id(loaded, "bp_tc_in")]
    hooks.detach_all()


def test_the_kernel_names_what_it_refuses(node: Net) -> None:
    """What the code above takes for granted of pyroute2's errors."""
    with pytest.raises(NetlinkError) as caught:
        node.ip.tc("add", "clsact", 4711)
    assert caught.value.code == errno.ENODEV
