"""Flows that the packet level tracks, and how to choose among them."""

from __future__ import annotations

import ipaddress
from enum import IntEnum

from msgspec import Struct

from bpfproxy.errors import InputError
from bpfproxy.model.address import Address, Family, Network, contains
from bpfproxy.model.service import Protocol


class State(IntEnum):
    """What was seen of a flow, in conntrack's words. TCP has those up to CLOSE, the others the last two."""

    SYN_SENT = 0
    SYN_RECV = 1
    """Answered, and the client has not gone on yet."""
    ESTABLISHED = 2
    FIN_WAIT = 3
    """The client has closed."""
    CLOSE_WAIT = 4
    """The backend has closed."""
    TIME_WAIT = 5
    """Both have."""
    CLOSE = 6
    """Reset by one of them."""
    UNREPLIED = 7
    REPLIED = 8

    @property
    def label(self) -> str:
        """The name."""
        return self.name


class Flow(Struct, frozen=True, gc=False):
    """One flow. Times are in seconds and as exact as the datapath's notes: packets of an active flow are noted about
    once in a second."""

    family: Family
    protocol: Protocol
    state: State
    client: Address
    client_port: int
    vip: Address
    """What the client talks to; the backend itself if the flow is `direct`."""
    vip_port: int
    backend: Address
    backend_port: int
    source: Address
    """The client as its backend sees it: a node address if the source is translated."""
    source_port: int
    service: str
    """`namespace/name:port` (no colon if the port has no name), empty if the frontend is gone."""
    age: float
    """Since its first packet."""
    expires: float
    """Until it is forgotten, if no packet comes."""
    direct: bool
    """The client talks to a backend by its own address: nothing is translated, but perhaps the source's port."""
    local: bool
    """The backend is on this node."""
    orphan: bool
    """The row that the client's packets use is gone: only replies are still translated."""

    @property
    def source_translated(self) -> bool:
        """Whether the backend sees another source than the client's own."""
        return self.source_port != self.client_port or self.source != self.client


class Place(Struct, frozen=True):
    """A network, and a port or 0 for any."""

    network: Network
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Place:
        """From `10.0.0.1`, `10.0.0.1:80`, `10.0.0.0/8`, `fd00::1`, `fd00::/64`, `[fd00::1]:80`. Raises InputError."""
        address, port = text, "0"
        if text.startswith("["):
            address, _, port = text[1:].partition("]:")
        elif text.count(":") == 1:
            address, _, port = text.partition(":")
        try:
            if not (port.isdecimal() and int(port) < 1 << 16):
                raise ValueError
            return cls(ipaddress.ip_network(address, strict=False), int(port))
        except ValueError:
            raise InputError(f"{text}: expected an address or a range, or ADDRESS:PORT") from None

    def holds(self, address: bytes, port: int) -> bool:
        """Whether an endpoint is of this place."""
        return self.port in (0, port) and contains((self.network,), address)


class FlowFilter(Struct, frozen=True, kw_only=True):
    """Chooses flows: those that fulfil every condition that is given."""

    family: Family | None = None
    protocol: Protocol | None = None
    state: State | None = None
    service: str = ""
    """`namespace/name`, or `namespace/name:port` for one port."""
    client: Place | None = None
    vip: Place | None = None
    backend: Place | None = None

    def __call__(self, flow: Flow) -> bool:
        """Whether `flow` is chosen."""
        return (
            self.family in (None, flow.family)
            and self.protocol in (None, flow.protocol)
            and self.state in (None, flow.state)
            and (not self.service or self.service in (flow.service, flow.service.partition(":")[0]))
            and (self.client is None or self.client.holds(flow.client, flow.client_port))
            and (self.vip is None or self.vip.holds(flow.vip, flow.vip_port))
            and (self.backend is None or self.backend.holds(flow.backend, flow.backend_port))
        )


ALL_FLOWS = FlowFilter()
"""No condition."""
