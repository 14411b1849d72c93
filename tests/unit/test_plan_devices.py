"""Which devices take part, and how: the policy over described nodes."""

from __future__ import annotations

from typing import Any

import pytest

from bpfproxy.config import Acceleration, Settings
from bpfproxy.errors import InputError
from bpfproxy.model.address import parse_address
from bpfproxy.model.device import Device, DevicePlan, DeviceRole, NetworkState, NodeNetwork, Xdp
from bpfproxy.plan import NodeConfig, plan_node
from bpfproxy.plan.devices import POD_DEVICES, DevicePolicy, device_policy, plan_devices

LO = Device(1, "lo", loopback=True)
ETH0 = Device(2, "eth0")
ETH1 = Device(3, "eth1")
UPLINK, POD, PASSAGE = DeviceRole


def planned(
    *devices: Device,
    default: tuple[int, ...] = (2,),
    uplinks: tuple[str, ...] = (),
    acceleration: Acceleration = "auto",
    **more: Any,
) -> dict[str, DevicePlan]:
    policy = DevicePolicy(uplinks, acceleration=acceleration)
    network = NodeNetwork(devices, frozenset(default), **more)
    return {plan.name: plan for plan in plan_devices(policy, network)}


def roles(*devices: Device, **options: Any) -> dict[str, DeviceRole]:
    return {name: plan.role for name, plan in planned(*devices, **options).items()}


def test_a_node_with_a_card_and_routed_pods() -> None:
    veth = Device(7, "veth1a2b", "veth")
    found = planned(LO, ETH0, ETH1, veth)
    assert found == {
        "eth0": DevicePlan(2, "eth0", UPLINK, True, True, Xdp.PREFERRED),
        "eth1": DevicePlan(3, "eth1", PASSAGE, False, True),
        "veth1a2b": DevicePlan(7, "veth1a2b", POD, True, True, one_pod=True),
    }


def test_uplinks_follow_the_default_routes() -> None:
    assert roles(ETH0, ETH1, default=(2, 3)) == {"eth0": UPLINK, "eth1": UPLINK}
    assert roles(ETH0, ETH1, default=(3,)) == {"eth0": PASSAGE, "eth1": UPLINK}


def test_where_nothing_comes_in_no_device_takes_part() -> None:
    assert roles(ETH0, ETH1, default=()) == {}
    assert roles(ETH0, Device(9, "veth9", "veth"), default=()) == {"eth0": PASSAGE, "veth9": POD}


def test_named_uplinks_replace_those_with_a_default_route() -> None:
    assert roles(ETH0, ETH1, uplinks=("eth1",)) == {"eth0": PASSAGE, "eth1": UPLINK}
    assert roles(ETH0, ETH1, uplinks=("eth[1-9]", "absent")) == {"eth0": PASSAGE, "eth1": UPLINK}
    assert roles(ETH0, Device(9, "veth9", "veth"), uplinks=("*",)) == {"eth0": UPLINK, "veth9": UPLINK}


def test_loopback_and_devices_that_lead_nowhere_take_no_part() -> None:
    assert roles(LO, Device(4, "kube-ipvs0", "dummy"), Device(5, "blue", "vrf"), uplinks=("*",)) == {}


def test_a_bridge_stands_for_its_ports() -> None:
    bridge = Device(5, "pods0", "bridge")
    ports = [Device(6, "veth6", "veth", master=5), Device(7, "tap7", "tun", master=5)]
    found = planned(ETH0, bridge, *ports)
    assert set(found) == {"eth0", "pods0"}
    assert found["pods0"].role is POD
    assert not found["pods0"].one_pod
    # A bridge that joins no pods is a mere passage; one with the uplink in it is the uplink.
    assert roles(ETH0, Device(5, "br0", "bridge"), Device(6, "eth6", master=5))["br0"] is PASSAGE
    assert roles(Device(2, "br0", "bridge"), Device(6, "eth6", master=2), ports[0]) == {"br0": UPLINK}


def test_a_port_that_is_named_takes_part_itself() -> None:
    bond, slave = Device(5, "bond0", "bond"), Device(2, "eth0", master=5)
    assert roles(bond, slave, default=(5,)) == {"bond0": UPLINK}
    assert roles(bond, slave, default=(5,), uplinks=("eth0",)) == {"bond0": PASSAGE, "eth0": UPLINK}


def test_devices_of_a_vrf_are_no_ports() -> None:
    assert roles(Device(5, "blue", "vrf"), Device(2, "eth0", master=5)) == {"eth0": UPLINK}


def test_a_port_of_a_master_in_another_namespace_is_still_a_port() -> None:
    assert roles(Device(6, "veth6", "veth", master=99)) == {}


@pytest.mark.parametrize("kind", ["vxlan", "geneve", "ipip", "ip6tnl", "wireguard"])
def test_behind_tunnels_are_pods_of_other_nodes(kind: str) -> None:
    tunnel = planned(Device(8, "flannel.1", kind, ethernet=kind in ("vxlan", "geneve")))["flannel.1"]
    assert (tunnel.role, tunnel.ingress, tunnel.one_pod) == (POD, True, False)


@pytest.mark.parametrize(
    ("name", "is_pod"),
    [
        ("veth0a1b2c3d", True),
        ("cali0123456789a", True),
        ("lxc_health", True),
        ("cni0", True),
        ("cni-podman0", True),
        ("docker0", True),
        ("eni0123", True),
        ("antrea-gw0", True),
        ("eth0", False),
        ("enp3s0", False),
        ("ens5", False),
        ("eno1", False),
        ("bond0", False),
        ("wlan0", False),
    ],
)
def test_names_that_plugins_give(name: str, is_pod: bool) -> None:
    assert roles(Device(2, "uplink"), Device(9, name, "veth"))[name] is (POD if is_pod else PASSAGE)


@pytest.mark.parametrize(
    ("device", "xdp"),
    [
        (Device(2, "eth0"), Xdp.PREFERRED),
        (Device(2, "eth0", "veth"), Xdp.NEVER),
        (Device(2, "eth0.5", "vlan"), Xdp.NEVER),
        (Device(2, "br0", "bridge"), Xdp.NEVER),
        (Device(2, "wg0", "wireguard", ethernet=False), Xdp.NEVER),
        (Device(2, "wwan0", ethernet=False), Xdp.NEVER),
        (Device(2, "bond0", "bond"), Xdp.NEVER),
    ],
)
def test_auto_takes_xdp_for_cards(device: Device, xdp: Xdp) -> None:
    assert planned(device)[device.name].xdp is xdp
    assert planned(device, acceleration="tc")[device.name].xdp is Xdp.NEVER
    demanded = planned(device, acceleration="xdp")[device.name]
    assert demanded.xdp is (Xdp.REQUIRED if device.ethernet else Xdp.NEVER)
    assert demanded.ethernet is device.ethernet


def test_auto_takes_xdp_for_bonds_of_cards() -> None:
    bond, card, pair = Device(2, "bond0", "bond"), Device(3, "eth0", master=2), Device(4, "eth1", "veth", master=2)
    assert planned(bond, card)["bond0"].xdp is Xdp.PREFERRED
    assert planned(bond, card, pair)["bond0"].xdp is Xdp.NEVER


def test_xdp_is_for_uplinks_alone() -> None:
    found = planned(ETH0, Device(9, "veth9", "veth"), ETH1, acceleration="xdp")
    assert {name: plan.xdp for name, plan in found.items()} == {
        "eth0": Xdp.REQUIRED,
        "veth9": Xdp.NEVER,
        "eth1": Xdp.NEVER,
    }


def test_the_first_address_of_each_family_is_the_source() -> None:
    addresses = tuple(map(parse_address, ("192.0.2.2", "192.0.2.3", "2001:db8::2", "2001:db8::3")))
    found = planned(ETH0, ETH1, addresses={2: addresses, 3: addresses[2:]})
    assert found["eth0"].sources == (addresses[0], addresses[2])
    assert found["eth1"].sources == (addresses[2],)
    assert str(found["eth0"]) == "uplink, ingress, egress, xdp preferred, source 192.0.2.2, source 2001:db8::2"


def test_the_settings_reach_the_plan() -> None:
    assert device_policy(Settings()) == DevicePolicy((), POD_DEVICES, "auto")
    policy = device_policy(Settings(device=("eth*",), pod_device=("pod*",), acceleration="tc"))
    assert policy == DevicePolicy(("eth*",), ("pod*",), "tc")
    network = NodeNetwork((LO, ETH0, Device(5, "pod1a", "veth")), frozenset((2,)))
    plan = plan_node(NodeConfig("n1", state=NetworkState(network, 7), devices=policy))
    assert [(device.name, device.role) for device in plan.devices] == [("eth0", UPLINK), ("pod1a", POD)]
    assert plan.route_generation == 7


@pytest.mark.parametrize("pattern", ["", "a/b", "eth0 eth1"])
def test_a_bad_pattern_is_named(pattern: str) -> None:
    with pytest.raises(InputError, match="--pod-device"):
        Settings(pod_device=(pattern,))
