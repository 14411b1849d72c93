"""What `check` says of devices: what would be used where, why not XDP, and who is there already."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from bpfproxy.datapath import attach, device, libbpf, xdp_features
from bpfproxy.datapath.device import Hook, TcxTarget, XdpTarget
from bpfproxy.datapath.hooks import DeviceHooks
from bpfproxy.datapath.loader import Loaded
from bpfproxy.datapath.probe_device import probe_devices
from bpfproxy.model.device import DevicePlan, DeviceRole, Xdp
from bpfproxy.model.finding import Finding
from tests.lab.datapath.devices import Net


def uplink(index: int, name: str = "eth0", xdp: Xdp = Xdp.PREFERRED) -> DevicePlan:
    return DevicePlan(index, name, DeviceRole.UPLINK, ingress=True, egress=True, xdp=xdp)


def found(state: Path, *plans: DevicePlan, uplinks: tuple[str, ...] = (), host_routing: bool = False) -> list[Finding]:
    return list(probe_devices(state, plans, uplinks, host_routing=host_routing))


def test_what_is_used_on_each_device(node: Net, state: Path) -> None:
    eth0, br0 = node.veth("eth0"), node.add("br0", kind="bridge")
    pod = DevicePlan(node.veth("veth7"), "veth7", DeviceRole.POD, ingress=True, egress=True)
    passage = DevicePlan(br0, "br0", DeviceRole.PASSAGE, ingress=False, egress=True)
    uplinks, first, second, third = found(state, uplink(eth0), pod, passage)
    assert (uplinks.available, uplinks.detail) == (True, "eth0")
    assert (first.name, first.available, first.detail) == ("device eth0", True, "uplink, XDP (in+out)")
    assert (second.available, second.detail) == (True, "pod, tc (in+out)")
    assert (third.available, third.detail) == (True, "passage, tc (out)")


def test_why_xdp_is_not_used(node: Net, state: Path, others: Path, other: Loaded) -> None:
    eth0, br0 = node.veth("eth0"), node.add("br0", kind="bridge")
    attach.attach(others, "theirs", other.programs["bp_xdp"], XdpTarget(eth0))
    _, busy, without = found(state, uplink(eth0), uplink(br0, "br0", Xdp.REQUIRED))
    number = device.xdp_program(eth0)
    assert (busy.available, busy.consequence) == (False, "tc in place of XDP")
    assert busy.detail == f"uplink, tc (in+out): another XDP program is on it (bp_xdp, id {number})"
    assert (without.available, without.detail) == (False, "uplink, tc (in+out): its driver has no native XDP")


def test_our_own_programs_are_no_strangers(node: Net, state: Path, loaded: Loaded) -> None:
    index = node.veth("eth0")
    for tcx in (True, False):
        hooks = DeviceHooks(state / "bpf", tcx=tcx)
        hooks.attach(Hook.XDP, index, loaded.programs["bp_xdp"])
        hooks.attach(Hook.TC_IN, index, loaded.programs["bp_tc_in_left"])
        assert [finding.detail for finding in found(state, uplink(index))] == ["eth0", "uplink, XDP (in+out)"]
        hooks.detach_all()


def test_programs_of_others_are_named(node: Net, state: Path, others: Path, other: Loaded) -> None:
    index = node.veth("eth0")
    program = other.programs["bp_tc_in"]
    attach.attach(others, "theirs", program, TcxTarget(index, "ingress"))
    node.ip.tc("add", "clsact", index)
    node.ip.tc(
        "add-filter",
        "bpf",
        index,
        1,
        fd=program.fd,
        name="fw",
        parent=0xFFFFFFF3,
        prio=1,
        protocol=3,
        direct_action=True,
    )
    [finding] = found(state, uplink(index, xdp=Xdp.NEVER))[1:]
    number = libbpf.info(program.fd, "prog").id
    assert finding.available
    assert finding.detail == (
        f"uplink, tc (in+out); also there, and before us: tcx ingress bp_tc_in, id {number}, tc egress filter fw"
    )


def test_a_node_without_uplinks(node: Net, state: Path) -> None:
    [finding] = found(state)
    assert (finding.available, finding.detail) == (False, "no device has a default route")
    assert finding.consequence
    [finding] = found(state, uplinks=("eth7", "en*"))
    assert finding.detail == "no device fits eth7, en*"
    pod = replace(uplink(node.veth("veth7"), "veth7"), role=DeviceRole.POD, xdp=Xdp.NEVER)
    assert not found(state, pod)[0].available


def test_host_routing_says_what_it_bypasses(node: Net, state: Path) -> None:
    [finding] = [finding for finding in found(state, host_routing=True) if finding.name == "host routing"]
    for bypassed in ("NetworkPolicy", "INVALID", "MASQUERADE"):
        assert bypassed in finding.detail


def test_a_device_that_is_gone(node: Net, state: Path) -> None:
    [finding] = found(state, uplink(4711))[1:]
    assert "tc" in finding.detail


def test_drivers_tell_of_native_xdp(node: Net) -> None:
    assert xdp_features.has_native_xdp(node.veth("eth0")) is True
    assert xdp_features.has_native_xdp(node.add("br0", kind="bridge")) is False
    assert xdp_features.has_native_xdp(4711) is None
