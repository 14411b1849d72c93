"""Which of the node's devices take part, and how. Pure: from the devices, their addresses and the default routes.

Uplinks are the devices that the settings name, or else those with a default route. Pods are behind devices whose name
fits a pattern, behind bridges that such devices are ports of, and (on other nodes) behind tunnels: replies of remote
backends come back through those. Every other device by which a packet may leave translates replies back.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final

from msgspec import Struct

from bpfproxy.config import Acceleration, Settings
from bpfproxy.model.address import Address, family_of
from bpfproxy.model.device import Device, DevicePlan, DeviceRole, NodeNetwork, Xdp

POD_DEVICES: Final = (
    "veth*",  # the reference plugins, flannel, kube-router, weave, Docker
    "cali*",  # Calico
    "lxc*",  # Cilium
    "eni*",  # AWS, Alibaba
    "azv*",  # Azure
    "gke*",  # Google
    "cni*",  # bridges from here on: the plugin `bridge`, flannel, podman
    "cbr*",
    "docker*",
    "podman*",
    "kube-bridge",
    "weave",
    "antrea-gw*",  # the node's ports of Open vSwitch bridges
    "ovn-k8s-mp*",
)
"""Patterns for pod-side devices by the names that network plugins give; uplinks are never called so, and where one is,
its default route decides."""

_TUNNELS: Final = frozenset(
    ("vxlan", "geneve", "ipip", "ip6tnl", "sit", "gre", "gretap", "ip6gre", "ip6gretap", "wireguard", "vti", "xfrm")
)
_PAIRS: Final = frozenset(("veth", "netkit"))
"""Kinds whose other end is in a pod."""
_NOWHERE: Final = frozenset(("vrf", "dummy", "ifb", "nlmon"))
"""Kinds by which nothing reaches anybody; packets of a VRF leave by the devices that belong to it."""
_VRF: Final = "vrf"
_BOND: Final = "bond"


class DevicePolicy(Struct, frozen=True):
    """The settings that decide. Patterns are the shell's: `eth*`, `en[op]*`."""

    uplinks: tuple[str, ...] = ()
    """Names and patterns; empty: devices with a default route."""
    pods: tuple[str, ...] = POD_DEVICES
    acceleration: Acceleration = "auto"


def device_policy(settings: Settings) -> DevicePolicy:
    """What the settings say of devices."""
    return DevicePolicy(settings.device, settings.pod_device or POD_DEVICES, settings.acceleration)


def plan_devices(policy: DevicePolicy, network: NodeNetwork) -> tuple[DevicePlan, ...]:
    """The part of each device that has one, by index. Devices that are down are made ready for their coming up."""
    if policy.acceleration == "none":
        return ()
    by_index = {device.index: device for device in network.devices}
    behind: dict[int, list[Device]] = {}
    for device in network.devices:
        behind.setdefault(device.master, []).append(device)
    plans = []
    for device in network.devices:
        if device.loopback or device.kind in _NOWHERE:
            continue
        if _is_port(device, by_index) and not matches(policy.uplinks, device):
            continue
        ports = behind.get(device.index, [])
        role = _role(policy, network, device, ports)
        plans.append(
            DevicePlan(
                index=device.index,
                name=device.name,
                role=role,
                ingress=role is not DeviceRole.PASSAGE,
                egress=True,
                xdp=_xdp(policy.acceleration, device, ports) if role is DeviceRole.UPLINK else Xdp.NEVER,
                ethernet=device.ethernet,
                one_pod=role is DeviceRole.POD and device.kind in _PAIRS,
                sources=_sources(network.addresses.get(device.index, ())),
            )
        )
    # Where nothing comes in, there is nothing to be translated back.
    return tuple(plans) if any(plan.ingress for plan in plans) else ()


def _is_port(device: Device, by_index: Mapping[int, Device]) -> bool:
    """Ports of a bridge or bond: what they carry goes through their master. Devices in a VRF are no ports."""
    return device.master != 0 and (device.master not in by_index or by_index[device.master].kind != _VRF)


def _role(policy: DevicePolicy, network: NodeNetwork, device: Device, ports: list[Device]) -> DeviceRole:
    if matches(policy.uplinks, device) if policy.uplinks else device.index in network.default_devices:
        return DeviceRole.UPLINK
    pods = any(matches(policy.pods, each) for each in (device, *ports))
    return DeviceRole.POD if pods or device.kind in _TUNNELS else DeviceRole.PASSAGE


def matches(patterns: tuple[str, ...], device: Device) -> bool:
    """Whether a device's name fits one of the patterns."""
    return any(fnmatchcase(device.name, pattern) for pattern in patterns)


def _xdp(acceleration: Acceleration, device: Device, ports: list[Device]) -> Xdp:
    """`auto`: for frames of a network card, or of a bond of cards. Between local devices XDP costs more than it saves:
    segmentation and checksum offload are lost."""
    if acceleration == "tc" or not device.ethernet:
        return Xdp.NEVER
    if acceleration == "xdp":
        return Xdp.REQUIRED
    if device.kind == _BOND:
        return Xdp.PREFERRED if ports and all(_is_card(port) for port in ports) else Xdp.NEVER
    return Xdp.PREFERRED if _is_card(device) else Xdp.NEVER


def _is_card(device: Device) -> bool:
    return not device.kind and device.ethernet


def _sources(addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    first: dict[int, Address] = {}
    for address in addresses:
        first.setdefault(family_of(address), address)
    return tuple(first[family] for family in sorted(first))
