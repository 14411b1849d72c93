"""The dummy device that has the VIPs, so that the kernel takes packets to them for its own."""

from __future__ import annotations

import errno
import socket
from typing import Final

from msgspec import Struct
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpfproxy.errors import DatapathError
from bpfproxy.model.address import Address, family_of, format_address, parse_address
from bpfproxy.model.device import VIP_DEVICE

_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_NO_DAD: Final = 0x2
_LINK_LOCAL: Final = 253
"""Scopes from here on are the link's own."""


class Bound(Struct, frozen=True):
    """Where addresses are."""

    ours: frozenset[Address]
    """On the dummy device."""
    others: frozenset[Address]
    """On any other."""


class VipDevice:
    """Of the network namespace of the calling thread. Methods raise OSError, and DatapathError where a device of this
    name is no dummy."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def close(self) -> None:
        """Release the socket."""
        self._netlink.close()

    def exists(self) -> bool:
        """Whether the device is there."""
        return self._index() is not None

    def make(self) -> None:
        """Make the device, unless it is there. It stays down: its addresses are the node's all the same."""
        try:
            self._netlink.link("add", ifname=VIP_DEVICE, kind="dummy")
        except NetlinkError as error:
            if error.code == errno.EOPNOTSUPP:
                raise DatapathError(f"cannot make {VIP_DEVICE}: this kernel has no dummy devices") from error
            if error.code != errno.EEXIST:
                raise DatapathError(f"cannot make {VIP_DEVICE}: {error}") from error

    def remove(self) -> None:
        """Remove the device with all its addresses."""
        index = self._index()
        if index is not None:
            self._netlink.link("del", index=index)

    def bound(self) -> Bound:
        """All addresses of the node, without those that are a link's own."""
        index = self._index()
        ours, others = set(), set()
        for message in self._netlink.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if message["index"] == index:
                if message["scope"] < _LINK_LOCAL:
                    ours.add(parse_address(text))
            else:
                others.add(parse_address(text))
        return Bound(frozenset(ours), frozenset(others))

    def bind(self, address: Address) -> None:
        """Give the device an address; nothing happens if it has it."""
        family = family_of(address)
        flags = {"flags": _NO_DAD} if family == 6 else {}
        self._netlink.addr(
            "replace",
            index=self._index() or 0,
            family=_FAMILY[family],
            address=format_address(address),
            prefixlen=8 * len(address),
            **flags,
        )

    def unbind(self, address: Address) -> None:
        """Take an address from the device; nothing happens if it has not got it."""
        index = self._index()
        if index is None:
            return
        try:
            self._netlink.addr("del", index=index, address=format_address(address), prefixlen=8 * len(address))
        except NetlinkError as error:
            if error.code not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                raise

    def _index(self) -> int | None:
        found = self._netlink.link_lookup(ifname=VIP_DEVICE)
        return found[0] if found else None
