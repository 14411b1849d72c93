"""The rows of the ebpf proxier: service tables with names in place of kernel ids, so that they can be compared."""

from __future__ import annotations

from msgspec import Struct

from bpfproxy.model.address import Address, Family, format_address
from bpfproxy.model.frontend import Backend, FrontendKind, Masquerade, OnEmpty, Pool, ServicePortName
from bpfproxy.model.service import Scheduler

Range = tuple[Address, int]
"""A network: its address and the length of its prefix."""


class SetKey(Struct, frozen=True, order=True, gc=False):
    """A set: the endpoints of one ServicePort, of one family, in one pool. Its kernel id lasts as long as the key."""

    service_port: ServicePortName
    family: Family
    pool: Pool

    def __str__(self) -> str:
        return f"{self.service_port}/v{self.family}/{self.pool.name.lower()}"


class SetRow(Struct, frozen=True):
    """The backends of a set. Tuples are sorted."""

    backends: tuple[Backend, ...]
    draining: tuple[Backend, ...] = ()
    on_empty: OnEmpty = OnEmpty.REJECT
    """REJECT wherever there are backends: it says nothing then."""
    scheduler: Scheduler = Scheduler.RANDOM


class FrontendRow(Struct, frozen=True, gc=False):
    """The row of a `Frontend`, which is its own key."""

    set: SetKey
    kind: FrontendKind
    masquerade: Masquerade = Masquerade.NEVER
    affinity_timeout: int = 0
    """Seconds; 0 without affinity."""
    scoped: bool = False
    source_ranges: tuple[Range, ...] = ()
    """Clients outside the cluster must come from one of these; empty: from anywhere. Sorted."""


class NodeAddress(Struct, frozen=True, order=True, gc=False):
    """Key: an address of the node. 127.0.0.0 stands for all of 127.0.0.0/8."""

    address: Address

    def __str__(self) -> str:
        return format_address(self.address)


class NodeAddressRow(Struct, frozen=True, gc=False):
    """What holds for an address of the node."""

    node_ports: bool = True


class ClusterNetwork(Struct, frozen=True, order=True, gc=False):
    """Key: a pod network of the cluster. Its row is True."""

    address: Address
    prefix: int

    def __str__(self) -> str:
        return f"{format_address(self.address)}/{self.prefix}"


class NodeKey(Struct, frozen=True, order=True, gc=False):
    """Key: the node itself."""

    def __str__(self) -> str:
        return "node"


class NodeRow(Struct, frozen=True, gc=False):
    """What the packet level knows of the node, and may change while programs run."""

    route_generation: int
    """Another one: next hops that are remembered may be wrong. 0: none is remembered."""
    sources: tuple[Address, ...] = ()
    """Where packets with a translated source come from, unless their device has an address: at most one per family."""
    shared: bool = False
    """Other modes are on the node as well: TCP segments of which no flow is known are left to conntrack."""


class DeviceKey(Struct, frozen=True, order=True, gc=False):
    """Key: a device of the node, by its interface index. Its row is a `DevicePlan`."""

    index: int

    def __str__(self) -> str:
        return f"device {self.index}"
