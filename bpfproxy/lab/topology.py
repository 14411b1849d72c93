"""The kernel's half of a lab: network namespaces, veths, addresses, routes and cgroups. Made and removed whole.

    client ──── switch (a bridge) ── node1 ── pod1a, pod1b, pod1c      routed, a veth per pod, as the CNI plugin
    client2 ──────┘      └────────── node2 ── pod2a, pod2b, pod2c      `ptp` does it; nodes route to each other

A lab writes down who owns it before it makes anything, and all that it makes carries its id, so what a killed process
left can be found and removed (`bpfproxy.lab.remains`).
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from pyroute2 import Ethtool, IPRoute
from pyroute2.ethtool.ioctl import NotSupportedError
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD

from bpfproxy.lab import bpf, cgroup, netns, remains
from bpfproxy.lab.layout import NODES, PLACES, SERVICE_RANGES, SPOTS, UPLINK_PREFIX, Spot

UPLINK = "eth0"
CHECKSUM = "tx-checksum-ip-generic"
"""The feature by which a sender leaves checksums to its device."""
_SWITCH = "switch"


class Topology:
    """A context manager: entering makes everything, leaving removes everything, whatever happened in between.

    `xdp`: the nodes whose uplinks are ready for XDP programs that send packets out again: see `take_from_xdp`.

    SIGTERM, if nobody else handles it, becomes SystemExit while a lab stands, so that it is removed then, too. Raises
    OSError or NetlinkError if the kernel refuses something (root is needed), with nothing left behind.
    """

    def __init__(self, xdp: Iterable[str] = ()) -> None:
        self.xdp = frozenset(xdp)
        self.lab_id = remains.new_id()
        self.directory = remains.directory(self.lab_id)
        """For state, manifests and logs of this lab; removed with it."""
        self.cgroup = cgroup.mount_point() / remains.prefix(self.lab_id)
        self._restore_sigterm: Callable[[], None] = lambda: None

    def netns(self, spot: str) -> str:
        """Network namespace of a spot."""
        home = PLACES[spot].home if spot in PLACES else ""
        return f"{remains.prefix(self.lab_id)}-{home or spot}"

    def node_cgroup(self, node: str) -> Path:
        """The cgroup that holds all processes of a node and of its pods."""
        return self.cgroup / node

    def spot_cgroup(self, spot: str) -> Path:
        """The cgroup of one spot: `host` for the node's own processes; no agent sees those in `unhooked`."""
        place = PLACES[spot]
        if place.home:
            return self.cgroup / "unhooked" / spot
        if place.node:
            return self.node_cgroup(place.node) / ("host" if place.kind == "node" else spot)
        return self.cgroup / spot

    def __enter__(self) -> Self:
        self._restore_sigterm = _exit_on_sigterm()
        try:
            remains.claim(self.lab_id)
            self._make_cgroups()
            for name in (_SWITCH, *SPOTS):
                netns.make(self.netns(name))
            self._make_switch()
            for spot in SPOTS.values():
                if spot.kind != "pod":
                    self._join_switch(spot)
            for spot in SPOTS.values():
                if spot.kind == "pod":
                    self._join_node(spot)
            for spot in SPOTS.values():
                self._make_routes(spot)
            for spot in SPOTS.values():
                self._prepare_xdp(spot)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        try:
            remains.remove(self.lab_id)
        finally:
            self._restore_sigterm()

    def _make_cgroups(self) -> None:
        for spot in PLACES:
            self.spot_cgroup(spot).mkdir(parents=True)

    def ip(self, spot: str) -> IPRoute:
        """rtnetlink in the namespace of a spot."""
        with netns.inside(self.netns(spot)):
            return IPRoute()

    def _make_switch(self) -> None:
        _settle(self.netns(_SWITCH), {})
        with self.ip(_SWITCH) as ip:
            ip.link("add", ifname="br0", kind="bridge", br_mcast_snooping=0)
            _up(ip, "lo", "br0")

    def _join_switch(self, spot: Spot, mac: str | None = None) -> None:
        _settle(self.netns(spot.name), _FORWARDING if spot.kind == "node" else {})
        with self.ip(_SWITCH) as switch, self.ip(spot.name) as ip:
            self.veth(switch, spot.name, UPLINK, spot.name)
            switch.link("set", index=_index(switch, spot.name), master=_index(switch, "br0"))
            _up(switch, spot.name)
            if mac:
                ip.link("set", index=_index(ip, UPLINK), address=mac)
            _address(ip, UPLINK, (spot.v4, UPLINK_PREFIX[4]), (spot.v6, UPLINK_PREFIX[6]))
            _up(ip, "lo", UPLINK)

    def _join_node(self, pod: Spot) -> None:
        net = NODES[pod.node]
        _settle(self.netns(pod.name), {})
        with self.ip(pod.node) as host, self.ip(pod.name) as ip:
            self.veth(host, pod.name, UPLINK, pod.name)
            _address(host, pod.name, (net.gateway4, 32), (net.gateway6, 128))
            _up(host, pod.name)
            _address(ip, UPLINK, (pod.v4, 32), (pod.v6, 128))
            _up(ip, "lo", UPLINK)
            inner = _index(ip, UPLINK)
            for gateway in (net.gateway4, net.gateway6):
                ip.route("add", dst=_host(gateway), oif=inner, scope="link")
                ip.route("add", dst=_default(gateway), gateway=gateway, oif=inner)
            self._route_to_pod(host, pod)

    def _route_to_pod(self, host: IPRoute, pod: Spot) -> None:
        node, outer = SPOTS[pod.node], _index(host, pod.name)
        for address, source in ((pod.v4, node.v4), (pod.v6, node.v6)):
            host.route("replace", dst=_host(address), oif=outer, prefsrc=source, scope="link")

    def _make_routes(self, here: Spot) -> None:
        """To the pods of other nodes, and to the addresses of Services."""
        if here.kind == "pod":
            return
        with self.ip(here.name) as ip:
            for node in NODES.values():
                if node.name != here.name:
                    self._add_routes(ip, (node.pods4, node.pods6), SPOTS[node.name])
            # A node has a route for every address, by its default gateway; a client's leads to its node.
            self._add_routes(ip, SERVICE_RANGES, SPOTS[here.gateway or "client"])

    def _prepare_xdp(self, spot: Spot) -> None:
        if spot.name in self.xdp:
            self.take_from_xdp(_SWITCH, spot.name)
        if self.xdp:
            self.offload(spot.name, UPLINK, CHECKSUM, on=False)

    def take_from_xdp(self, spot: str, device: str) -> None:
        """Make a veth take what XDP sends at its other end, as real wires do: it needs a program, too."""
        with self.ip(spot) as ip, bpf.pass_program() as program:
            ip.link("set", index=_index(ip, device), xdp_fd=program)

    def offload(self, spot: str, device: str, feature: str, *, on: bool) -> None:
        """Turn a feature of a device on or off. No checksums may be left to a device if XDP is at its other end, which
        would pass them on as they are."""
        with netns.inside(self.netns(spot)), contextlib.closing(Ethtool()) as tool:
            features = tool.get_features(device)
            features.features[feature].enable = on
            # The kernel says so too if another feature does not come out as asked: an agent may just put XDP there.
            with contextlib.suppress(NotSupportedError):
                tool.set_features(device, features)
            if tool.get_features(device).features[feature].enable is not on:
                raise OSError(f"{feature} of {device} in {spot} stays as it is")

    def offloads(self, spot: str, device: str) -> set[str]:
        """Features of a device that are on, by the kernel's names."""
        with netns.inside(self.netns(spot)), contextlib.closing(Ethtool()) as tool:
            return {name for name, feature in tool.get_features(device).features.items() if feature.enable}

    def replug(self, node: str) -> None:
        """Remove the uplink of a node and make it again, with the same name, link address, addresses and routes."""
        spot = SPOTS[node]
        with self.ip(node) as ip:
            index = _index(ip, UPLINK)
            mac = ip.get_links(index)[0].get_attr("IFLA_ADDRESS")
            ip.link("del", index=index)
        self._join_switch(spot, mac)
        self._make_routes(spot)
        with self.ip(node) as ip:
            for pod in SPOTS.values():
                if pod.kind == "pod" and pod.node == node:
                    self._route_to_pod(ip, pod)  # these went with the address that they name
        self._prepare_xdp(spot)

    def _add_routes(self, ip: IPRoute, destinations: Iterable[str], gateway: Spot) -> None:
        for destination in destinations:
            ip.route("add", dst=destination, gateway=gateway.address(6 if ":" in destination else 4))

    def veth(self, ip: IPRoute, name: str, peer: str, peer_spot: str) -> None:
        """Make a pair of veths, one here and one in a spot, both down."""
        with (netns.DIRECTORY / self.netns(peer_spot)).open() as namespace:
            ip.link("add", ifname=name, kind="veth", peer={"ifname": peer, "net_ns_fd": namespace.fileno()})


_FORWARDING = {"ipv4.ip_forward": 1, "ipv6.conf.all.forwarding": 1}
_UNHURRIED = {
    "ipv6.conf.all.accept_dad": 0,
    "ipv6.conf.default.accept_dad": 0,
    "ipv6.conf.default.dad_transmits": 0,
    # Every refusal is told, however many a client gets.
    "ipv4.icmp_ratelimit": 0,
    "ipv6.icmp.ratelimit": 0,
}


_OF_NEW_KERNELS = {"ipv4.icmp_msgs_per_sec": 1_000_000, "ipv4.icmp_msgs_burst": 1_000_000}
"""The same for all clients together; older kernels have one limit for all namespaces."""


def _settle(namespace: str, sysctls: dict[str, int]) -> None:
    with netns.inside(namespace):
        for key, value in {**_UNHURRIED, **sysctls}.items():
            netns.set_sysctl(key, value)
        for key, value in _OF_NEW_KERNELS.items():
            with contextlib.suppress(FileNotFoundError):
                netns.set_sysctl(key, value)


def _index(ip: IPRoute, name: str) -> int:
    return int(ip.link_lookup(ifname=name)[0])


def _up(ip: IPRoute, *names: str) -> None:
    for name in names:
        ip.link("set", index=_index(ip, name), state="up")


def _address(ip: IPRoute, device: str, *addresses: tuple[str, int]) -> None:
    for address, prefix in addresses:
        # One of IPv6 could be no route's source else until the kernel has noticed that the device is up.
        flags = {"flags": IFA_F_NODAD} if ":" in address else {}
        ip.addr("add", index=_index(ip, device), address=address, prefixlen=prefix, **flags)


def _host(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


def _default(address: str) -> str:
    return "::/0" if ":" in address else "0.0.0.0/0"


def _exit_on_sigterm() -> Callable[[], None]:
    """Turn SIGTERM into SystemExit where that is ours to do; returns what undoes it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return lambda: None

    def leave(number: int, frame: FrameType | None) -> Any:
        raise SystemExit(128 + number)

    def restore() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, leave)
    return restore
