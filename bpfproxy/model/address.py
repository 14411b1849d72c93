"""IP addresses in the form that the planner compares and the kernel stores: packed bytes.

An `Address` is 4 bytes (IPv4) or 16 bytes (IPv6) in network order. Packed bytes hash and compare many times
faster than `ipaddress` objects, and a full plan handles hundreds of thousands of them.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Final, Literal, NewType

Address = NewType("Address", bytes)
Family = Literal[4, 6]

ANY4: Final = Address(bytes(4))
ANY6: Final = Address(bytes(16))

V4_MAPPED_PREFIX: Final = bytes(10) + b"\xff\xff"


def parse_address(text: str) -> Address:
    """Pack the textual address `text`; raises ValueError if it is none. Leading zeros are refused."""
    try:
        if ":" in text:
            return Address(socket.inet_pton(socket.AF_INET6, text))
        return Address(socket.inet_pton(socket.AF_INET, text))
    except OSError:
        raise ValueError(f"expected an IP address, not {text!r}") from None


def format_address(address: bytes) -> str:
    """The usual text of a packed address."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def format_endpoint(address: bytes, port: int) -> str:
    """`10.0.0.1:80` or `[fd00::1]:80`."""
    text = format_address(address)
    return f"{text}:{port}" if len(address) == 4 else f"[{text}]:{port}"


def family_of(address: bytes) -> Family:
    """4 or 6, by the length of the packed address."""
    return 4 if len(address) == 4 else 6


def v4_mapped(address: bytes) -> bytes:
    """The 16 bytes under which both families are kept in one map: IPv4 becomes ::ffff:a.b.c.d."""
    return V4_MAPPED_PREFIX + address if len(address) == 4 else address


def from_v4_mapped(packed: bytes) -> Address:
    """The inverse of `v4_mapped`."""
    return Address(packed[12:] if packed.startswith(V4_MAPPED_PREFIX) else packed)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def contains(networks: tuple[Network, ...], address: bytes) -> bool:
    """Whether one of `networks` holds the packed `address`."""
    number = int.from_bytes(address, "big")
    bits = len(address) * 8
    return any(
        network.max_prefixlen == bits
        and number >> (bits - network.prefixlen) == int(network.network_address) >> (bits - network.prefixlen)
        for network in networks
    )
