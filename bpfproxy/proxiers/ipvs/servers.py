"""Virtual and real servers by netlink, one at a time, in the network namespace of the calling thread.

Real servers are reached by NAT (masquerading, in IPVS's words): the only way that keeps ports apart.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from pyroute2 import IPVS, IPVSDest, IPVSService
from pyroute2.netlink.exceptions import NetlinkError

from bpfproxy.errors import UnsupportedError
from bpfproxy.model.address import Address, Family, family_of, format_address, parse_address
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.ipvs.rows import ServerKey, ServerRow

_FAMILY: Final[dict[Family, int]] = {4: socket.AF_INET, 6: socket.AF_INET6}
_PERSISTENT: Final = 1
_ALL_FLAGS: Final = 0xFFFFFFFF
_MASQUERADE: Final = 0
"""The forwarding method: NAT."""
_NETMASK: Final[dict[Family, str]] = {4: "255.255.255.255", 6: socket.inet_ntoa(struct.pack("=I", 128))}
"""Which clients persistence takes for one: single addresses. For IPv6 the kernel has a prefix length in this place."""


_LOADED: Final = Path("/proc/net/ip_vs")
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"


class ServerExistsError(Exception):
    """There is a virtual server already."""


class NoServerError(Exception):
    """There is no such virtual or real server."""


class Real(Struct, frozen=True, gc=False):
    """What the kernel says of a real server."""

    address: Address
    port: int
    weight: int
    connections: int
    """Active and inactive ones."""


class Servers:
    """Raises UnsupportedError if the kernel has no IPVS; its methods raise OSError and the errors above."""

    def __init__(self) -> None:
        if not _loaded():  # asked first, since IPVS() would leave sockets open
            raise UnsupportedError("this kernel has no IPVS (module ip_vs)")
        try:
            self._netlink = IPVS()
        except (OSError, NetlinkError) as error:
            raise UnsupportedError(f"IPVS cannot be talked to: {error}") from error

    def close(self) -> None:
        """Release the socket."""
        self._netlink.close()

    def all(self) -> Iterator[tuple[ServerKey, ServerRow]]:
        """All virtual servers with an address, of whoever made them; those by firewall mark are left out."""
        for message in list(self._netlink.service("dump")):
            attributes = message.get_attr("IPVS_CMD_ATTR_SERVICE")
            protocol = attributes.get_attr("IPVS_SVC_ATTR_PROTOCOL")
            if protocol in Protocol.__members__.values():
                address = parse_address(attributes.get_attr("IPVS_SVC_ATTR_ADDR"))
                flags = attributes.get_attr("IPVS_SVC_ATTR_FLAGS")["flags"]
                timeout = attributes.get_attr("IPVS_SVC_ATTR_TIMEOUT") if flags & _PERSISTENT else 0
                key = ServerKey(address, attributes.get_attr("IPVS_SVC_ATTR_PORT"), Protocol(protocol))
                yield key, ServerRow(attributes.get_attr("IPVS_SVC_ATTR_SCHED_NAME"), timeout)

    def add(self, key: ServerKey, row: ServerRow) -> None:
        """Make a virtual server. Raises ServerExistsError."""
        with _errors(row.scheduler):
            self._netlink.service("add", service=_service(key, row))

    def set(self, key: ServerKey, row: ServerRow) -> None:
        """Change one, without a moment in which it is not there."""
        with _errors(row.scheduler):
            self._netlink.service("set", service=_service(key, row))

    def delete(self, key: ServerKey) -> None:
        """Remove one with its real servers; nothing happens if it is not there."""
        with contextlib.suppress(NoServerError), _errors():
            self._netlink.service("del", service=_service(key))

    def reals(self, key: ServerKey) -> list[Real]:
        """Those behind a virtual server. Raises NoServerError."""
        with _errors():
            return [
                _real(message.get_attr("IPVS_CMD_ATTR_DEST"))
                for message in self._netlink.dest("dump", service=_service(key))
            ]

    def put_real(self, key: ServerKey, address: Address, port: int, weight: int) -> None:
        """See to it that a real server has a weight. Raises NoServerError if there is no virtual one."""
        dest = IPVSDest(addr=format_address(address), port=port, fwd_method=_MASQUERADE, weight=weight)
        with _errors():
            try:
                self._netlink.dest("add", service=_service(key), dest=dest)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
                self._netlink.dest("set", service=_service(key), dest=dest)

    def delete_real(self, key: ServerKey, address: Address, port: int) -> None:
        """Remove a real server; nothing happens if it, or its virtual one, is not there."""
        with contextlib.suppress(NoServerError), _errors():
            self._netlink.dest("del", service=_service(key), dest=IPVSDest(addr=format_address(address), port=port))


def _loaded() -> bool:
    """Whether the module is there. The kernel does not load it when it is asked for by netlink, as it does with
    others."""
    if not _LOADED.exists() and (modprobe := shutil.which("modprobe", path=_PATH)):
        subprocess.run([modprobe, "--quiet", "ip_vs"], check=False, capture_output=True)
    return _LOADED.exists()


def _service(key: ServerKey, row: ServerRow | None = None) -> IPVSService:
    more: dict[str, Any] = {}
    if row is not None:
        flags = _PERSISTENT if row.affinity_timeout else 0
        more = {
            "sched_name": row.scheduler,
            "timeout": row.affinity_timeout,
            "flags": {"flags": flags, "mask": _ALL_FLAGS},
            "netmask": _NETMASK[key.family],
        }
    return IPVSService(
        af=_FAMILY[key.family], protocol=int(key.protocol), addr=format_address(key.address), port=key.port, **more
    )


def _real(attributes: Any) -> Real:
    family = attributes.get_attr("IPVS_DEST_ATTR_ADDR_FAMILY")
    address = parse_address(attributes.get_attr("IPVS_DEST_ATTR_ADDR"))
    assert family is None or _FAMILY[family_of(address)] == family
    return Real(
        address,
        attributes.get_attr("IPVS_DEST_ATTR_PORT"),
        attributes.get_attr("IPVS_DEST_ATTR_WEIGHT"),
        attributes.get_attr("IPVS_DEST_ATTR_ACTIVE_CONNS") + attributes.get_attr("IPVS_DEST_ATTR_INACT_CONNS"),
    )


@contextlib.contextmanager
def _errors(scheduler: str = "") -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        match error.code:
            case errno.EEXIST:
                raise ServerExistsError from error
            case errno.ENOENT if scheduler:
                raise OSError(error.code, f"this kernel has no IPVS scheduler {scheduler!r}") from error
            case errno.ENOENT | errno.ESRCH:
                raise NoServerError from error
        raise OSError(error.code, str(error)) from error
