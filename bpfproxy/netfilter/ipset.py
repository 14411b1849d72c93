"""ipsets by netlink, of the network namespace of the calling thread. Entries are values, whatever their set's type."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct
from pyroute2 import IPSet
from pyroute2.ipset import PortEntry
from pyroute2.netlink.exceptions import IPSetError
from pyroute2.netlink.nfnetlink.ipset import IPSET_ERR_EXIST

from bpfproxy.errors import UnsupportedError
from bpfproxy.model.address import Address, Family, format_address, parse_address

_BITMAP_PORT: Final = "bitmap:port"
_MAX_ELEMENTS: Final = 1 << 20
"""A hash grows up to that; kube-proxy has 65536."""
_FAMILY: Final[dict[Family, int]] = {4: socket.AF_INET, 6: socket.AF_INET6}


class Entry(Struct, frozen=True, order=True, gc=False):
    """Of a set of type `hash:ip`, `hash:ip,port`, `hash:ip,port,ip`, `hash:ip,port,net` or `bitmap:port`: as much of it
    as the type has."""

    address: Address = Address(b"")
    port: int = 0
    protocol: int = 0
    source: Address = Address(b"")
    prefix: int = 0
    """Of a source that is a network."""


class Content(Struct):
    """A set."""

    type: str
    """The kernel's name for it."""
    entries: list[Entry]


class IpSets:
    """Raises UnsupportedError if the kernel has no ipsets; its methods raise OSError."""

    def __init__(self) -> None:
        try:
            self._netlink = IPSet()
        except (OSError, IPSetError) as error:
            raise UnsupportedError(f"this kernel has no ipsets: {error}") from error

    def close(self) -> None:
        """Release the socket."""
        self._netlink.close()

    def all(self) -> dict[str, Content]:
        """All sets that there are."""
        found: dict[str, Content] = {}
        for message in self._list():
            name, type_ = message.get_attr("IPSET_ATTR_SETNAME"), message.get_attr("IPSET_ATTR_TYPENAME")
            content = found.setdefault(name, Content(type_, []))
            listed = message.get_attr("IPSET_ATTR_ADT")
            content.entries += [_entry(data) for data in listed.get_attrs("IPSET_ATTR_DATA")] if listed else ()
        return found

    def create(self, name: str, type_: str, family: Family) -> None:
        """Make a set; nothing happens if there is one of this name and type already."""
        with _os_errors():
            if type_ == _BITMAP_PORT:
                self._netlink.create(name, type_, exclusive=False, family=0, bitmap_ports_range=(0, 65535))
            else:
                self._netlink.create(name, type_, exclusive=False, family=_FAMILY[family], maxelem=_MAX_ELEMENTS)

    def destroy(self, name: str) -> None:
        """Remove a set and its entries; nothing happens if there is none."""
        with contextlib.suppress(FileNotFoundError), _os_errors():
            self._netlink.destroy(name)

    def add(self, name: str, type_: str, family: Family, entry: Entry) -> None:
        """Add an entry; nothing happens if it is there."""
        with _os_errors():
            self._netlink.add(name, _parts(entry), family=_FAMILY[family], exclusive=False, etype=_etype(type_))

    def delete(self, name: str, type_: str, family: Family, entry: Entry) -> None:
        """Remove an entry; nothing happens if it, or the set, is not there."""
        with contextlib.suppress(FileNotFoundError), _os_errors():
            self._netlink.delete(name, _parts(entry), family=_FAMILY[family], exclusive=False, etype=_etype(type_))

    def _list(self) -> Iterator[Any]:
        with _os_errors():
            yield from self._netlink.list()


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    try:
        yield
    except IPSetError as error:
        if error.code == errno.ENOENT:
            raise FileNotFoundError(error.code, str(error)) from error
        if error.code != IPSET_ERR_EXIST:
            raise OSError(error.code, str(error)) from error


def _etype(type_: str) -> str:
    return type_.partition(":")[2]


def _parts(entry: Entry) -> list[Any]:
    """As pyroute2 takes it, in the order of the type's name."""
    parts: list[Any] = []
    if entry.address:
        parts.append(format_address(entry.address))
    if entry.port:
        parts.append(PortEntry(entry.port, protocol=entry.protocol) if entry.protocol else entry.port)
    if entry.source:
        text = format_address(entry.source)
        parts.append(f"{text}/{entry.prefix}" if entry.prefix else text)
    return parts


def _entry(data: Any) -> Entry:
    return Entry(
        _address(data.get_attr("IPSET_ATTR_IP_FROM")),
        data.get_attr("IPSET_ATTR_PORT_FROM") or 0,
        data.get_attr("IPSET_ATTR_PROTO") or 0,
        _address(data.get_attr("IPSET_ATTR_IP2")),
        data.get_attr("IPSET_ATTR_CIDR2") or 0,
    )


def _address(nested: Any) -> Address:
    text = nested and (nested.get_attr("IPSET_ATTR_IPADDR_IPV4") or nested.get_attr("IPSET_ATTR_IPADDR_IPV6"))
    return parse_address(text) if text else Address(b"")
