"""What the packet level needs from the settings: sizes of its maps, and its part of `struct config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bpfproxy.datapath import abi, features
from bpfproxy.model.address import ANY4, ANY6, Address
from bpfproxy.model.frontend import Backend

PROGRAMS: Final = ("xdp_lb", "xdp4_lb", "xdp6_lb", "tc_lb", "tc4_lb", "tc6_lb")
"""Files of the C tree; the first declares all maps."""

_TICK_SHIFT: Final = abi.constant("TICK_SHIFT")
_U64: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Idle times after which a flow is forgotten, in seconds: kube-proxy's defaults, and the kernel's where
    kube-proxy has none."""

    tcp_syn: float = 120
    tcp_established: float = 86400
    tcp_close_wait: float = 3600
    """One side has closed."""
    tcp_time_wait: float = 120
    """Both have."""
    tcp_reset: float = 10
    udp: float = 30
    """No answer yet."""
    udp_stream: float = 120
    sctp: float = 210


def ticks(seconds: float) -> int:
    """A time as the datapath keeps it, at least one tick."""
    return max(1, round(seconds * 1e9) >> _TICK_SHIFT)


def constants(timeouts: Timeouts, *, host_routing: bool, error_rate: int) -> dict[str, int]:
    """The packet level's fields of `struct config`; `error_rate`: ICMP errors per second and CPU."""
    clock = features.jiffies_clock()
    return {
        "clock_base": clock.zero & _U64,
        "clock_rate": (10**9 << 32 >> _TICK_SHIFT) // clock.hz,
        "host_routing": int(host_routing),
        "error_rate": error_rate,
        **{name: ticks(getattr(timeouts, name)) for name in Timeouts.__slots__},
    }


def sizes(*, flows: int, networks: int, backends: int, devices: int = 1024) -> dict[str, int]:
    """max_entries of the packet level's maps. `flows`: of client ports that can be known at once, per family."""
    calls = abi.constant("CALL_COUNT")
    per_family = {
        "networks": networks,
        "backend_ids": backends,
        "flows": flows,
        "tuples": flows,
        "fragments": max(1024, flows >> 4),
        "drafts": 1,
    }
    return {
        **{f"{name}{family}": size for name, size in per_family.items() for family in (4, 6)},
        "served_ports": 3 * abi.constant("SERVED_ROWS"),
        "node": 1,
        "devices": devices,
        "allowances": 1,
        "handovers": 1,
        "xdp_calls": calls,
        "tc_calls": calls,
    }


# ---- rows --------------------------------------------------------------------------------------------------------

CLUSTER: Final = 0
"""Owner of the cluster's pod networks in networks4/6; a frontend's id owns its source ranges."""

_NETWORK_KEYS: Final = {4: abi.layout("struct network4_key"), 6: abi.layout("struct network6_key")}
_ENDPOINT_KEYS: Final = {4: abi.layout("struct endpoint4_key"), 6: abi.layout("struct endpoint6_key")}
_NODE: Final = abi.layout("struct node")
_DEVICE: Final = abi.layout("struct device")
_NODE_SHARED: Final = abi.constant("NODE_SHARED")
_DEVICE_POD: Final = abi.constant("DEVICE_POD")
_DEVICE_XDP: Final = abi.constant("DEVICE_XDP")


def encode_network(owner: int, address: Address, prefix: int) -> bytes:
    """The key in networks4 or networks6; the value is 1, 32 bits."""
    return _NETWORK_KEYS[4 if len(address) == 4 else 6].pack(32 + prefix, owner, address)


def decode_network(family: int, key: bytes) -> tuple[int, tuple[Address, int]]:
    """(owner, range) of a key in networks4 or networks6."""
    prefix, owner, address = _NETWORK_KEYS[family].unpack(key)
    return owner, (Address(address), prefix - 32)


def decode_node(row: bytes) -> tuple[int, tuple[Address, ...], bool]:
    """(generation of routes, source addresses, shared): the inverse of `encode_node`."""
    generation, flags, address4, address6 = _NODE.unpack(row)
    sources = tuple(Address(address) for address in (address4, address6) if any(address))
    return generation, sources, bool(flags & _NODE_SHARED)


def encode_backend_key(backend: Backend) -> bytes:
    """The key in backend_ids4 or backend_ids6; the value is the backend's id, 32 bits."""
    layout = _ENDPOINT_KEYS[4 if len(backend.address) == 4 else 6]
    return layout.pack(backend.address, backend.port.to_bytes(2), backend.protocol, 0)


def encode_node(generation: int, address4: Address = ANY4, address6: Address = ANY6, *, shared: bool = False) -> bytes:
    """Row 0 of node: generation of routes, the addresses that translated packets come from, and whether other modes
    are on the node as well."""
    return _NODE.pack(generation, _NODE_SHARED * shared, address4, address6)


def encode_device(*, pod: bool = False, xdp: bool = False, address4: Address = ANY4, address6: Address = ANY6) -> bytes:
    """A row of devices, whose key is the ifindex, 32 bits. `xdp`: an XDP program runs on it."""
    return _DEVICE.pack(_DEVICE_POD * pod | _DEVICE_XDP * xdp, address4, address6)
