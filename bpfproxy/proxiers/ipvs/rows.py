"""The rows of the ipvs proxier. Rows without fields of their own are True."""

from __future__ import annotations

from msgspec import Struct

from bpfproxy.model.address import ANY4, ANY6, Address, Family, family_of, format_address, format_endpoint
from bpfproxy.model.service import Protocol

Range = tuple[Address, int]
"""A network: its address and the length of its prefix."""


class ServerKey(Struct, frozen=True, order=True, gc=False):
    """A virtual server. An address of all zero stands for every address of the node on which NodePorts answer: in the
    kernel these are as many virtual servers, of which the row speaks as of one."""

    address: Address
    port: int
    protocol: Protocol

    @property
    def family(self) -> Family:
        """4 or 6."""
        return family_of(self.address)

    @property
    def on_node(self) -> bool:
        """Whether it stands for all addresses of the node."""
        return self.address in (ANY4, ANY6)

    def at(self, address: Address) -> ServerKey:
        """The same at `address`."""
        return ServerKey(address, self.port, self.protocol)

    def __str__(self) -> str:
        return f"{format_endpoint(self.address, self.port)}/{self.protocol.name}"


class ServerRow(Struct, frozen=True, gc=False):
    """A virtual server, its address on the node, and that address in KUBE-IPVS-IPS."""

    scheduler: str
    """The kernel's name: `rr`."""
    affinity_timeout: int = 0
    """Seconds of persistence; 0 without."""
    complete: bool = True
    """Nothing of it is missing in the kernel. No renderer wants it otherwise."""


class RealKey(Struct, frozen=True, order=True, gc=False):
    """A real server behind a virtual one."""

    server: ServerKey
    address: Address
    port: int

    def __str__(self) -> str:
        return f"{self.server} → {format_endpoint(self.address, self.port)}"


class RealRow(Struct, frozen=True, gc=False):
    """A real server, and where it is local, its entry in KUBE-LOOP-BACK."""

    weight: int = 1
    """0: it keeps the connections that it has."""
    local: bool = False
    """Runs on this node."""
    complete: bool = True
    """See `ServerRow`."""


class EntryKey(Struct, frozen=True, gc=False):
    """An entry of an ipset, as far as its type has them: address, port, protocol, source. As in `ServerKey` an address
    of all zero stands for those of the node."""

    family: Family
    set: str
    """A name of `sets.SETS`."""
    port: int
    protocol: Protocol = Protocol.TCP
    address: Address = Address(b"")
    source: Range | None = None

    def __str__(self) -> str:
        place = format_endpoint(self.address, self.port) if self.address else str(self.port)
        text = f"{self.set} v{self.family} {place}/{self.protocol.name}"
        if self.source is None:
            return text
        address, prefix = self.source
        return f"{text} from {format_address(address)}{f'/{prefix}' if prefix else ''}"


class SetKey(Struct, frozen=True, order=True, gc=False):
    """An ipset. Its row: the kernel's name of its type."""

    family: Family
    set: str
    """A name of `sets.SETS`."""


class NodeAddress(Struct, frozen=True, order=True, gc=False):
    """An address of the node on which NodePorts answer: an entry of KUBE-NODE-IPS."""

    address: Address


class DeviceKey(Struct, frozen=True, order=True, gc=False):
    """The dummy device that has the VIPs."""


class SysctlKey(Struct, frozen=True, order=True, gc=False):
    """A kernel parameter, with slashes: `net/ipv4/vs/conntrack`. Its row: the value as text."""

    name: str
