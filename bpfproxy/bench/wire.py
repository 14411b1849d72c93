"""Nodes for measurements of packets, without anybody who talks: traffic is made, and thrown away.

    generator ── up0  node  up1 ── remote pods
                        pod0 ── pods of this node

Each node is a network namespace of its own, so any number of them can be measured in turns. What is beyond its devices
is in one namespace, `far`. Every address that traffic goes to has a permanent neighbour.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from bpfproxy.bench.ground import Ground
from bpfproxy.bench.objects import NODE, address
from bpfproxy.lab import netns, remains
from bpfproxy.model.address import Family
from bpfproxy.model.event import Object
from bpfproxy.model.service import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectName,
    Protocol,
    Service,
    ServicePort,
)

VIP: dict[Family, int] = {4: 0x0A600001, 6: (0xFD00_0096 << 96) + 1}  # 10.96.0.1, fd00:96::1
LOCAL: dict[Family, int] = {4: 0x0A800001, 6: (0xFD00_0128 << 96) + 1}  # 10.128.0.1, fd00:128::1
REMOTE: dict[Family, int] = {4: 0x0A400001, 6: (0xFD00_0064 << 96) + 1}  # 10.64.0.1, fd00:64::1
CLIENT: dict[Family, int] = {4: 0x0AC80001, 6: (0xFD00_0200 << 96) + 1}  # 10.200.0.1, fd00:200::1
PODS = 1 << 22
"""Addresses from LOCAL and REMOTE on that can be pods."""
NODE_ADDRESS = {4: "192.0.3.1", 6: "2001:db8:3::1"}
"""Where translated packets to remote pods come from."""
ETHERNET = "02:00:00:00:00:01"
"""Of every node's up0."""
_ENDS = {"gen": ("up0", ETHERNET), "far": ("up1", "02:00:00:00:00:02"), "pod": ("pod0", "02:00:00:00:00:03")}
PORT, TARGET_PORT = 53, 8080
"""Of Services, and of their pods; UDP."""
FAMILIES: tuple[Family, ...] = (4, 6)

_SETUP = """
link set lo up
link set up0 up
link set up1 up
link set pod0 up
addr add 192.0.2.1/24 dev up0
addr add 192.0.3.1/24 dev up1
addr add 192.0.4.1/24 dev pod0
addr add 2001:db8:2::1/64 dev up0 nodad
addr add 2001:db8:3::1/64 dev up1 nodad
addr add 2001:db8:4::1/64 dev pod0 nodad
neigh add 192.0.2.2 lladdr 02:00:00:00:02:02 dev up0 nud permanent
neigh add 192.0.3.2 lladdr 02:00:00:00:03:02 dev up1 nud permanent
neigh add 192.0.4.2 lladdr 02:00:00:00:04:02 dev pod0 nud permanent
neigh add 2001:db8:2::2 lladdr 02:00:00:00:02:02 dev up0 nud permanent
neigh add 2001:db8:3::2 lladdr 02:00:00:00:03:02 dev up1 nud permanent
neigh add 2001:db8:4::2 lladdr 02:00:00:00:04:02 dev pod0 nud permanent
route add default via 192.0.2.2
route add default via 2001:db8:2::2
route add 10.64.0.0/10 via 192.0.3.2
route add fd00:64::/32 via 2001:db8:3::2
route add 10.128.0.0/10 via 192.0.4.2
route add fd00:128::/32 via 2001:db8:4::2
"""


@dataclass(frozen=True)
class WireNode:
    """A node; the devices beyond its own are `NAME-gen`, `NAME-far` and `NAME-pod` in `far`."""

    name: str
    netns: str
    far: str

    def inside(self) -> AbstractContextManager[None]:
        """The node's network namespace."""
        return netns.inside(self.netns)

    def index(self, device: str) -> int:
        """Of a device of the node."""
        with self.inside():
            return socket.if_nametoindex(device)

    def far_index(self, end: str) -> int:
        """Of the other end of a veth: `gen`, `far` or `pod`."""
        with netns.inside(self.far):
            return socket.if_nametoindex(f"{self.name}-{end}")


def make_far(ground: Ground) -> str:
    """The namespace beyond the nodes; removed with `ground`, as all nodes are."""
    far = f"{remains.prefix(ground.lab_id)}-far"
    netns.make(far)
    with netns.inside(far):
        for key in ("all", "default"):
            netns.set_sysctl(f"ipv6.conf.{key}.disable_ipv6", 1)  # nobody says anything of its own accord
    return far


def make_node(ground: Ground, name: str, far: str) -> WireNode:
    """A node that forwards."""
    space = f"{remains.prefix(ground.lab_id)}-{name}"
    netns.make(space)
    with netns.inside(space):
        for key in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            netns.set_sysctl(key, 1)
    links = [
        f"link add {name}-{end} type veth peer name {device} address {ethernet} netns {space}"
        for end, (device, ethernet) in _ENDS.items()
    ]
    _ip(far, [*links, *(f"link set {name}-{end} up" for end in _ENDS)])
    _ip(space, _SETUP.splitlines())
    return WireNode(name, space, far)


def _ip(namespace: str, lines: list[str]) -> None:
    subprocess.run(["ip", "-n", namespace, "-batch", "-"], input="\n".join(lines).encode(), check=True)


# ---- services ----------------------------------------------------------------------------------------------------


def service(
    index: int, *, remote: bool = False, endpoints: int = 10, families: tuple[Family, ...] = (4,)
) -> tuple[Object, ...]:
    """Service `index`, at VIP + `index`, with endpoints of its own: on the node, or (`remote`) on another one."""
    name = ObjectName("bench", f"service-{index}")
    first = REMOTE if remote else LOCAL

    def slice_of(family: Family) -> EndpointSlice:
        return EndpointSlice(
            ObjectName("bench", f"service-{index}-ipv{family}"),
            name,
            family,
            (EndpointPort("datagram", Protocol.UDP, TARGET_PORT),),
            tuple(
                Endpoint(address(family, first[family], 10 * index + n), node_name="other" if remote else NODE)
                for n in range(endpoints)
            ),
        )

    ports = (ServicePort("datagram", Protocol.UDP, PORT),)
    vips = tuple(address(family, VIP[family], index) for family in families)
    return Service(name, ports, cluster_ips=vips), *(slice_of(family) for family in families)


def services(count: int) -> Iterator[Object]:
    """`count` Services of IPv4 with endpoints on the node."""
    for index in range(count):
        yield from service(index)
