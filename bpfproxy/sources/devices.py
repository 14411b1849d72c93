"""The node's devices, their addresses and the default routes, followed live over netlink.

As with addresses (see `addresses`), events say that it is time to look, and what there is comes from one dump. What
they say besides is whether a next hop that somebody remembers may be wrong: another route, neighbour or link.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted

from bpfproxy.model.address import Address, parse_address
from bpfproxy.model.device import Device, NetworkState, NodeNetwork
from bpfproxy.sources.readable import readable

_NETLINK_ROUTE: Final = 0
_GROUPS: Final = 0x1 | 0x4 | (0x10 | 0x100) | (0x40 | 0x400) | (0x80 | 1 << 18) | 1 << 31
"""Links, neighbours, and of both families addresses, routes and rules; next-hop objects."""
_RECEIVE_BUFFER: Final = 1 << 20
_SO_RCVBUFFORCE: Final = 33

_LINK, _ADDRESS, _ROUTE, _RULE, _NEXT_HOP = (16, 17), (20, 21), (24, 25), (32, 33), (104, 105)
_NEIGH: Final = (28, 29)
_DELNEIGH: Final = 29
"""Types of messages: new, gone."""
_HEADER: Final = struct.Struct("=IHHII")
_NEIGHBOUR: Final = struct.Struct("=BBHiHBB")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_VALID: Final = 0x2 | 0x4 | 0x8 | 0x10 | 0x40 | 0x80
"""States in which the link-layer address counts: reachable, stale, delay, probe, noarp, permanent."""
_IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_ARPHRD_ETHER: Final = 1
_ARPHRD_LOOPBACK: Final = 772
_UNICAST: Final = 1
_IFA_UNUSABLE: Final = 0x8 | 0x20 | 0x40
"""DAD failed, deprecated, tentative: no source address (now)."""
_BRIDGE: Final = 7
"""The family of a bridge's forwarding entries, which are no neighbours."""
_HOST_SCOPE: Final = 253
"""Addresses of this scope and narrower ones are the link's or the node's own affair."""
_PAUSE: Final = 0.02
"""Seconds in which events gather after a delivery."""
_TRIES: Final = 5
"""Dumps that changes interrupted, before one is taken as it is."""


class DeviceSource:
    """Follows the devices of the network namespace of the thread that runs it."""

    async def run(self, sink: Callable[[NetworkState], None]) -> None:
        """Call `sink` with the state, at once and whenever it is another, until cancelled. Raises OSError if netlink
        cannot be had."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE) as events:
            try:
                events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            except PermissionError:
                events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            events.bind((0, _GROUPS))
            neighbours = _Neighbours()
            network = await _list()
            generation = _first_generation()
            sink(NetworkState(network, generation))
            while True:
                await readable(events.fileno())
                seen = _drain(events, neighbours)
                former = network
                if seen.network:
                    network = await _list()
                if seen.next_hops:
                    generation = generation % 0xFFFFFFFF + 1
                if seen.next_hops or network != former:
                    sink(NetworkState(network, generation))
                    await asyncio.sleep(_PAUSE)


def network_state() -> NetworkState:
    """The state now. Not for use in a running event loop; raises OSError."""
    return NetworkState(asyncio.run(_list()), _first_generation())


def _first_generation() -> int:
    """In steps of 2^24 ns, so that no generation of an earlier run is ahead of it."""
    return (time.monotonic_ns() >> 24) % 0xFFFFFFFF + 1


# ---- events ------------------------------------------------------------------------------------------------------


class _Seen:
    """What some events were about."""

    network = False
    """What the snapshot holds may be another."""
    next_hops = False
    """A next hop may be another."""


class _Neighbours:
    """Link-layer addresses by device and address: most events of neighbours repeat what is known."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, bytes], bytes] = {}

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def note(self, kind: int, body: memoryview) -> bool:
        """Take in an event; returns whether a next hop that was in use may be another now."""
        family, _, _, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
        if family == _BRIDGE:
            return False
        attributes = dict(_attributes(body[_NEIGHBOUR.size :]))
        key = (index, attributes.get(_NDA_DST, b""))
        if kind == _DELNEIGH:
            return self._known.pop(key, None) != b""
        address = attributes.get(_NDA_LLADDR, b"") if state & _NUD_VALID else b""
        former = self._known.get(key)
        self._known[key] = address
        return former != address  # also at the first: it may have had another before this run


def _drain(events: socket.socket, neighbours: _Neighbours) -> _Seen:
    """Take all queued events as one."""
    seen = _Seen()
    while True:
        try:
            data = memoryview(events.recv(1 << 16))
        except BlockingIOError:
            return seen
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            seen.network = seen.next_hops = True  # some were lost, whatever they were
            neighbours.clear()
            continue
        for kind, body in _messages(data):
            _note(kind, body, seen, neighbours)


def _note(kind: int, body: memoryview, seen: _Seen, neighbours: _Neighbours) -> None:
    if kind in _ADDRESS:
        seen.network = True
    elif kind in _NEIGH:
        seen.next_hops |= neighbours.note(kind, body)
    elif kind in _ROUTE:
        seen.next_hops = True
        seen.network |= body[1] == 0  # the length of the destination's prefix: a default route
    elif kind in _LINK:
        seen.network = seen.next_hops = True
    elif kind in _RULE or kind in _NEXT_HOP:
        seen.next_hops = True


def _messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(type, body) of each message."""
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _attributes(data: memoryview) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, bytes(data[_ATTRIBUTE.size : length])
        data = data[max((length + 3) & ~3, _ATTRIBUTE.size) :]


# ---- dumps -------------------------------------------------------------------------------------------------------


async def _list() -> NodeNetwork:
    for _ in range(_TRIES):
        try:
            return await _list_once()
        except NetlinkDumpInterrupted:
            continue
    return await _list_once()


async def _list_once() -> NodeNetwork:
    async with AsyncIPRoute() as netlink:
        links = [_device(message) async for message in await netlink.get_links()]
        default: set[int] = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            async for message in await netlink.get_routes(family=family):
                default.update(_default_devices(message))
        addresses: dict[int, list[Address]] = {}
        async for message in await netlink.get_addr():
            if address := _source_address(message):
                addresses.setdefault(message["index"], []).append(address)
    return NodeNetwork(
        tuple(sorted(links, key=lambda device: device.index)),
        frozenset(default),
        {index: tuple(sorted(found, key=len)) for index, found in sorted(addresses.items())},
    )


def _device(message: Any) -> Device:
    information = message.get_attr("IFLA_LINKINFO")
    mac = message.get_attr("IFLA_ADDRESS") or ""
    return Device(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=(information.get_attr("IFLA_INFO_KIND") if information else None) or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        mac=bytes.fromhex(mac.replace(":", "")) if message["ifi_type"] == _ARPHRD_ETHER else b"",
        up=bool(message["flags"] & _IFF_UP),
        loopback=bool(message["flags"] & _IFF_LOOPBACK),
        ethernet=message["ifi_type"] in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK),
        master=message.get_attr("IFLA_MASTER") or 0,
    )


def _default_devices(message: Any) -> Iterator[int]:
    if message["dst_len"] or message["type"] != _UNICAST:
        return
    if index := message.get_attr("RTA_OIF"):
        yield index
    for hop in message.get_attr("RTA_MULTIPATH") or ():
        yield hop["oif"]


def _source_address(message: Any) -> Address | None:
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    if not text or flags & _IFA_UNUSABLE or message["scope"] >= _HOST_SCOPE:
        return None
    return parse_address(text)
