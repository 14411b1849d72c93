"""The node's own addresses, followed live over netlink.

Events only say that it is time to look: the set always comes from one dump, so a lost event (ENOBUFS) is like any
other. Importing pyroute2 costs some 14 MiB whichever part of it is named, so import this module where it is needed.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final

from pyroute2 import AsyncIPRoute, IPRoute

from bpfproxy.model.address import Address, parse_address
from bpfproxy.model.device import VIP_DEVICE
from bpfproxy.sources.readable import readable

_NETLINK_ROUTE: Final = 0
_GROUPS: Final = 0x10 | 0x100
"""RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR."""


def node_addresses() -> frozenset[Address]:
    """The unicast addresses of all interfaces of the calling thread's network namespace, without loopback, IPv6
    link-local ones, and the VIPs of an IPVS proxy. Not for use in a running event loop; raises OSError."""
    with IPRoute() as netlink:
        return _select(netlink.get_addr())


class AddressSource:
    """Follows the addresses of the network namespace of the thread that runs it."""

    async def run(self, sink: Callable[[frozenset[Address]], None]) -> None:
        """Call `sink` with all addresses (see `node_addresses`), at once and whenever they are others, until
        cancelled. Raises OSError if netlink cannot be had."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE) as events:
            events.bind((0, _GROUPS))
            last: frozenset[Address] | None = None
            while True:
                current = await _list()
                if current != last:
                    last = current
                    sink(current)
                await readable(events.fileno())
                _drain(events)


async def _list() -> frozenset[Address]:
    async with AsyncIPRoute() as netlink:
        return _select([message async for message in await netlink.get_addr()])


def _drain(events: socket.socket) -> None:
    """Take all queued events as one."""
    while True:
        try:
            events.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # some were lost, which is no matter; the rest is still queued
                raise


def _select(messages: Iterable[Any]) -> frozenset[Address]:
    found = set()
    vip_device = _index(VIP_DEVICE)
    for message in messages:
        if message["index"] == vip_device:
            continue
        # IFA_ADDRESS is the peer's on a point-to-point link, where IFA_LOCAL is ours.
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        if text:
            address = parse_address(text)
            if not _is_loopback(address) and not _is_link_local6(address):
                found.add(address)
    return frozenset(found)


def _index(device: str) -> int | None:
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return None


def _is_loopback(address: Address) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\x01"


def _is_link_local6(address: Address) -> bool:
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80
