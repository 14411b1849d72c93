"""The node's network devices, and what each of them has to do with the traffic of Services."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from msgspec import Struct, field

from bpfproxy.model.address import Address, format_address

VIP_DEVICE: Final = "kube-ipvs0"
"""The device on which an IPVS proxy, ours or another, keeps VIPs: its addresses are no node addresses."""


class Device(Struct, frozen=True, gc=False):
    """A network device as the kernel describes it. Numbers are those of its network namespace."""

    index: int
    name: str
    kind: str = ""
    """The kernel's word: `veth`, `bridge`, `vlan`, `bond`, `vxlan`, ...; empty for hardware and loopback."""
    mtu: int = 1500
    mac: bytes = b""
    """Link-layer address, empty where there is none."""
    up: bool = True
    """Set up by its administrator; it may still be without a carrier."""
    loopback: bool = False
    ethernet: bool = True
    """Its packets begin with an Ethernet header; otherwise (tunnels, tun) with the IP header."""
    master: int = 0
    """Index of the bridge, bond, team or VRF that it belongs to; 0: none."""

    def __str__(self) -> str:
        return self.name


class NodeNetwork(Struct, frozen=True):
    """The node's devices at one moment."""

    devices: tuple[Device, ...] = ()
    """By index."""
    default_devices: frozenset[int] = frozenset()
    """Indexes of devices with a default route, of either family, in any routing table."""
    addresses: Mapping[int, tuple[Address, ...]] = field(default_factory=dict)
    """index → global unicast addresses, IPv4 first, each family in the kernel's order: its first is the one that the
    kernel prefers as a source."""


class NetworkState(Struct, frozen=True):
    """The node's devices, and the age of what is known of the ways to other hosts."""

    network: NodeNetwork = NodeNetwork()
    route_generation: int = 0
    """Another one with each change of routes, neighbours or links, by which a next hop that somebody remembers may be
    wrong. From 1, and larger than those of earlier runs; 0: not followed."""


class DeviceRole(IntEnum):
    """What a device leads to."""

    UPLINK = 0
    """Clients outside the cluster, other nodes."""
    POD = 1
    """Pods, on this node or (a tunnel) on others."""
    PASSAGE = 2
    """Nobody that Services are offered to, but replies may leave by it."""


class Xdp(IntEnum):
    """Whether packets that arrive are handled by XDP, before the stack sees them."""

    NEVER = 0
    PREFERRED = 1
    """Where the device can do it natively, else by tc."""
    REQUIRED = 2
    """As PREFERRED, but that it cannot be had is a failure, and tried again."""


class DevicePlan(Struct, frozen=True):
    """What is to be done on one device."""

    index: int
    name: str
    role: DeviceRole
    ingress: bool
    """Packets that arrive are looked at: for Services, and for replies to translate back."""
    egress: bool
    """Replies that leave are translated back."""
    xdp: Xdp = Xdp.NEVER
    ethernet: bool = True
    one_pod: bool = False
    """Leads to exactly one pod: the other end of a veth."""
    sources: tuple[Address, ...] = ()
    """The device's own address of each family, for the source of what leaves by it; at most two."""

    def __str__(self) -> str:
        words = [self.role.name.lower()]
        words += ["ingress"] * self.ingress + ["egress"] * self.egress
        words += [f"xdp {self.xdp.name.lower()}"] * bool(self.xdp)
        words += ["no link layer"] * (not self.ethernet) + ["one pod"] * self.one_pod
        return ", ".join([*words, *(f"source {format_address(source)}" for source in self.sources)])
