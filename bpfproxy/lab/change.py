"""Changes to a lab that runs, each undone at the end of its block."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_network

from bpfproxy.lab import netns
from bpfproxy.lab.layout import NODES, SPOTS, Family
from bpfproxy.lab.topology import CHECKSUM, UPLINK, Topology

_LINK = ("192.168.77.0/30", "fd00:192:168:77::/126")
_MTU = 1500
_HEADERS: dict[Family, int] = {4: 40, 6: 60}
"""IP and TCP headers without options, bytes."""
_FAMILIES: tuple[Family, ...] = (4, 6)


@contextlib.contextmanager
def rules(topology: Topology, spot: str, family: Family, *lines: str) -> Iterator[None]:
    """iptables rules in a spot, as `-t filter -A FORWARD -j DROP`. Raises CalledProcessError."""
    with contextlib.ExitStack() as undo:
        for line in lines:
            _iptables(topology, spot, family, line)
            undo.callback(_iptables, topology, spot, family, line.replace("-A ", "-D ", 1))
        yield


def _iptables(topology: Topology, spot: str, family: Family, line: str) -> None:
    command = "iptables" if family == 4 else "ip6tables"
    with netns.inside(topology.netns(spot)):
        subprocess.run([command, "-w", *shlex.split(line)], check=True, stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def link(
    topology: Topology, one: str, other: str, name: str, *, to: Iterable[str], mtu: int = _MTU
) -> Iterator[Callable[[], int]]:
    """A second link between two spots, called `name` at both ends, by which `one` sends what goes to the spots `to`.
    Yields a reader of how many bytes it has sent."""
    with topology.ip(one) as here, topology.ip(other) as there:
        topology.veth(here, name, name, other)
        with contextlib.ExitStack() as undo:
            undo.callback(lambda: here.link("del", ifname=name))
            ends = ((one, here, 0), (other, there, 1))
            for spot, ip, number in ends:
                [index] = ip.link_lookup(ifname=name)
                for network in map(ip_network, _LINK):
                    ip.addr("add", index=index, address=str(network[number + 1]), prefixlen=network.prefixlen)
                ip.link("set", index=index, mtu=mtu, state="up")
                if topology.xdp:
                    topology.offload(spot, name, CHECKSUM, on=False)
                    if SPOTS[spot].kind == "client":
                        topology.take_from_xdp(spot, name)
            [index] = here.link_lookup(ifname=name)
            for family, network in zip(_FAMILIES, map(ip_network, _LINK), strict=True):
                for spot in to:
                    here.route("add", dst=_host(SPOTS[spot].address(family)), gateway=str(network[2]), oif=index)
            yield lambda: int(here.get_links(index)[0].get_attr("IFLA_STATS64")["tx_bytes"])


@contextlib.contextmanager
def address(topology: Topology, spot: str, device: str, address: str, prefix: int) -> Iterator[None]:
    """One more address."""
    with topology.ip(spot) as ip:
        [index] = ip.link_lookup(ifname=device)
        what = {"index": index, "address": address, "prefixlen": prefix}
        ip.addr("add", **what)
        try:
            yield
        finally:
            ip.addr("del", **what)


@contextlib.contextmanager
def narrow(topology: Topology, pod: str, mtu: int) -> Iterator[None]:
    """Lower the MTU of a pod's link. The pod goes on to announce segments that do not fit, as if the narrow link were
    further away, so that TCP has to discover the path's MTU."""
    try:
        _set_mtu(topology, pod, mtu, announce=True)
        yield
    finally:
        _set_mtu(topology, pod, _MTU, announce=False)


def _set_mtu(topology: Topology, pod: str, mtu: int, *, announce: bool) -> None:
    net = NODES[SPOTS[pod].node]
    with topology.ip(net.name) as host, topology.ip(pod) as ip:
        [outer], [inner] = host.link_lookup(ifname=pod), ip.link_lookup(ifname=UPLINK)
        host.link("set", index=outer, mtu=mtu)
        ip.link("set", index=inner, mtu=mtu)
        for family, gateway in zip(_FAMILIES, (net.gateway4, net.gateway6), strict=True):
            metrics = {"advmss": _MTU - _HEADERS[family]} if announce else {}
            default = "::/0" if family == 6 else "0.0.0.0/0"
            ip.route("replace", dst=default, gateway=gateway, oif=inner, metrics=metrics)


def _host(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"
