"""Flows of the kernel's conntrack, by its netlink interface: ends those of UDP whose endpoint no longer serves (rule
16), and tells whether TCP connections that were translated go on.

A UDP flow has no end of its own: as long as the client sends, conntrack goes on translating to the endpoint that was
chosen at first, also when that is long gone.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, Final

from msgspec import Struct
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from bpfproxy.errors import DatapathError
from bpfproxy.model.address import ANY4, ANY6, Address, Family, family_of, format_address, parse_address
from bpfproxy.model.frontend import Frontend
from bpfproxy.model.service import Protocol

Endpoint = tuple[Address, int]
"""Address and port."""

_FEW: Final = 256
"""Up to so many ports are asked for one by one, and the kernel leaves out all other flows; beyond it, all UDP flows are
looked at."""
_FAMILIES: Final[tuple[Family, ...]] = (4, 6)
_AF: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_VERSION: Final = {4: "V4", 6: "V6"}
_ENOENT: Final = 2
_DST_NAT: Final = 1 << 5
"""Of a connection's status."""
_TIME_WAIT: Final = 7
"""Of the states of TCP, in which all before this one are those of connections that last."""
_PAUSE: Final = 5.0
"""Seconds."""


class Flow(Struct, frozen=True, gc=False):
    """One conntrack entry of UDP."""

    client: Endpoint
    to: Endpoint
    """Where the client sends to."""
    server: Endpoint
    """Who answers: after DNAT the endpoint, else the same as `to`."""
    zone: int | None = None


def delete_stale(serving: Mapping[Endpoint, frozenset[Endpoint]]) -> int:
    """Delete the UDP flows to the frontends that are the keys of `serving` unless their endpoint is in the row there.
    A frontend's address that is all zero stands for every address of the node, and, for flows that were translated
    already, for any: it may have been the node's. An endpoint's stands for any. Returns how many were deleted.

    Works on the network namespace of the calling thread. Raises DatapathError.
    """
    deleted = 0
    try:
        for family in _FAMILIES:
            mine = {frontend: row for frontend, row in serving.items() if family_of(frontend[0]) == family}
            if mine:
                with closing(NFCTSocket(nfgen_family=_AF[family])) as conntrack:
                    stale = list(_stale(conntrack, family, mine))
                    deleted += sum(_delete(conntrack, family, flow) for flow in stale)
    except (NetlinkError, OSError) as error:
        raise DatapathError(f"conntrack: {error}") from error
    return deleted


class Connections:
    """TCP connections whose destination was translated, in the network namespace of the calling thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ask_again = 0.0

    def lead_to(self, frontends: Iterable[Frontend]) -> bool:
        """Whether a client goes on to send to one of these. A positive answer holds for some seconds, since looking
        takes the longer the more connections there are. Raises DatapathError."""
        if self._clock() < self._ask_again:
            return True
        wanted = {(one.address, one.port) for one in frontends if one.protocol is Protocol.TCP}
        try:
            found = any(_connected(family, wanted) for family in _FAMILIES)
        except (NetlinkError, OSError) as error:
            raise DatapathError(f"conntrack: {error}") from error
        if found:
            self._ask_again = self._clock() + _PAUSE
        return found


def _connected(family: Family, wanted: Collection[Endpoint]) -> bool:
    mine = {endpoint for endpoint in wanted if family_of(endpoint[0]) == family}
    if not mine:
        return False
    wildcard = ANY4 if family == 4 else ANY6
    tcp = NFCTAttrTuple(_AF[family], proto=Protocol.TCP.value)
    with closing(NFCTSocket(nfgen_family=_AF[family])) as conntrack:
        for message in conntrack.dump(tuple_orig=tcp, status=_DST_NAT, status_mask=_DST_NAT):
            if _translated(message) and _lasts(message):
                _, to = _ends(message.get_attr("CTA_TUPLE_ORIG"), family)
                if to in mine or (wildcard, to[1]) in mine:
                    return True
    return False


def _translated(message: Any) -> bool:
    """Kernels before 5.15 send all connections."""
    return bool(message.get_attr("CTA_STATUS") & _DST_NAT)


def _lasts(message: Any) -> bool:
    """Not when both sides have closed."""
    state = message.get_nested("CTA_PROTOINFO", "CTA_PROTOINFO_TCP", "CTA_PROTOINFO_TCP_STATE")
    return state is not None and 0 < state < _TIME_WAIT


def problem() -> str:
    """Why flows cannot be looked at here, or empty."""
    try:
        with closing(NFCTSocket()) as conntrack:
            conntrack.conntrack_max_size()
    except (NetlinkError, OSError) as error:
        return str(error)
    return ""


def flows(family: Family) -> list[Flow]:
    """All UDP flows of a family. Raises NetlinkError."""
    with closing(NFCTSocket(nfgen_family=_AF[family])) as conntrack:
        return list(_dump(conntrack, family))


def _stale(conntrack: Any, family: Family, serving: Mapping[Endpoint, frozenset[Endpoint]]) -> Iterator[Flow]:
    wildcard = ANY4 if family == 4 else ANY6
    here = _local_addresses(family) if any(address == wildcard for address, _ in serving) else frozenset()
    for flow in _candidates(conntrack, family, serving):
        endpoints = serving.get(flow.to)
        if endpoints is None and (flow.to != flow.server or flow.to[0] in here):
            endpoints = serving.get((wildcard, flow.to[1]))
        if endpoints is not None and not endpoints & {flow.server, (wildcard, flow.server[1])}:
            yield flow


def _candidates(conntrack: Any, family: Family, frontends: Iterable[Endpoint]) -> Iterator[Flow]:
    ports = {port for _, port in frontends}
    for port in ports if len(ports) <= _FEW else (None,):
        yield from _dump(conntrack, family, port)


def _dump(conntrack: Any, family: Family, port: int | None = None) -> Iterator[Flow]:
    """UDP flows, those to one port or all. The kernel leaves out the others; one before 5.8 sends them too. Addresses
    are not asked for: its comparison of IPv6 ones is the wrong way round (seen in 6.18)."""
    for message in conntrack.dump(tuple_orig=NFCTAttrTuple(_AF[family], proto=Protocol.UDP.value, dport=port)):
        original, reply = message.get_attr("CTA_TUPLE_ORIG"), message.get_attr("CTA_TUPLE_REPLY")
        if original.get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_NUM") == Protocol.UDP:
            client, target = _ends(original, family)
            yield Flow(client, target, _ends(reply, family)[0], message.get_attr("CTA_ZONE"))


def _ends(attributes: Any, family: Family) -> tuple[Endpoint, Endpoint]:
    """(source, destination) of a tuple."""
    ip, ports = attributes.get_attr("CTA_TUPLE_IP"), attributes.get_attr("CTA_TUPLE_PROTO")
    source, destination = (
        (parse_address(ip.get_attr(f"CTA_IP_{_VERSION[family]}_{end}")), ports.get_attr(f"CTA_PROTO_{end}_PORT"))
        for end in ("SRC", "DST")
    )
    return source, destination


def _delete(conntrack: Any, family: Family, flow: Flow) -> bool:
    """Whether it was there still."""
    original = NFCTAttrTuple(
        family=_AF[family],
        saddr=format_address(flow.client[0]),
        daddr=format_address(flow.to[0]),
        proto=Protocol.UDP.value,
        sport=flow.client[1],
        dport=flow.to[1],
    )
    try:
        conntrack.entry("del", tuple_orig=original, **({} if flow.zone is None else {"zone": flow.zone}))
    except NetlinkError as error:
        if error.code == _ENOENT:
            return False
        raise
    return True


def _local_addresses(family: Family) -> frozenset[Address]:
    """Those of the node; the loopback range is represented by 127.0.0.1."""
    with IPRoute() as ip:
        texts = [
            message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            for message in ip.get_addr(family=_AF[family])
        ]
    return frozenset(parse_address(text) for text in texts)
