"""Packets as scapy builds them, checksums included, and what programs say about them."""

from __future__ import annotations

import warnings
from typing import Any, Final

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
    from scapy.layers.inet6 import (
        ICMPv6DestUnreach,
        ICMPv6EchoRequest,
        ICMPv6PacketTooBig,
        ICMPv6ParamProblem,
        ICMPv6TimeExceeded,
        IPv6,
        IPv6ExtHdrDestOpt,
        IPv6ExtHdrFragment,
        IPv6ExtHdrHopByHop,
    )
    from scapy.layers.l2 import Dot1Q, Ether
    from scapy.layers.sctp import SCTP, SCTPChunkData
    from scapy.packet import Packet, Raw

from bpfproxy.model.service import Protocol

UP_MAC: Final = "02:00:00:00:00:01"
ROUTER_MAC: Final = "02:00:00:00:00:fe"
REMOTE_MAC: Final = "02:00:00:00:02:05"
POD_MAC: Final = "02:00:00:00:01:05"
POD_GATEWAY_MAC: Final = "02:00:00:00:01:01"

XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = 1, 2, 3, 4
TC_NEXT, TC_SHOT, TC_REDIRECT = -1, 2, 7

PASS: Final = {"xdp": XDP_PASS, "tc": TC_NEXT}
DROP: Final = {"xdp": XDP_DROP, "tc": TC_SHOT}
SENT: Final = {"xdp": XDP_REDIRECT, "tc": TC_REDIRECT}

VERDICTS: Final = {"xdp": {1, 2, 3, 4}, "tc": {-1, 2, 7}}

PAYLOAD: Final = b"0123456789abcdef!"


def network(source: str, destination: str, hops: int = 64) -> Packet:
    if ":" in source:
        return IPv6(src=source, dst=destination, hlim=hops)
    return IP(src=source, dst=destination, ttl=hops, id=7)


def transport(protocol: Protocol, sport: int, dport: int, flags: str = "S", payload: bytes = PAYLOAD) -> Packet:
    match protocol:
        case Protocol.TCP:
            return TCP(sport=sport, dport=dport, flags=flags, seq=1000) / Raw(payload)
        case Protocol.UDP:
            return UDP(sport=sport, dport=dport) / Raw(payload)
        case Protocol.SCTP:
            return SCTP(sport=sport, dport=dport, tag=1) / SCTPChunkData(data=payload)
    raise AssertionError


def frame(
    protocol: Protocol,
    source: tuple[str, int],
    destination: tuple[str, int],
    *,
    flags: str = "S",
    hops: int = 64,
    payload: bytes = PAYLOAD,
    macs: tuple[str, str] = (ROUTER_MAC, UP_MAC),
) -> bytes:
    """A frame with link layer addresses (from, to)."""
    inner = transport(protocol, source[1], destination[1], flags, payload)
    return bytes(Ether(src=macs[0], dst=macs[1]) / network(source[0], destination[0], hops) / inner)


def show(raw: bytes) -> str:
    return str(Ether(raw).show(dump=True))


def same(found: bytes, expected: bytes) -> None:
    """Fails with both packets in words."""
    assert found == expected, f"found\n{show(found)}\nexpected\n{show(expected)}"


def checksums_hold(raw: bytes) -> bool:
    """Whether scapy would have computed the same checksums."""
    packet: Any = Ether(raw)
    fresh = packet.copy()
    for layer in (IP, TCP, UDP, ICMP, SCTP):
        if layer in fresh:
            del fresh[layer].chksum
    return bytes(fresh) == raw


__all__ = [
    "ICMP",
    "IP",
    "SCTP",
    "TCP",
    "UDP",
    "Dot1Q",
    "Ether",
    "ICMPv6DestUnreach",
    "ICMPv6EchoRequest",
    "ICMPv6PacketTooBig",
    "ICMPv6ParamProblem",
    "ICMPv6TimeExceeded",
    "IPOption_Router_Alert",
    "IPv6",
    "IPv6ExtHdrDestOpt",
    "IPv6ExtHdrFragment",
    "IPv6ExtHdrHopByHop",
    "Packet",
    "Raw",
    "SCTPChunkData",
    "checksums_hold",
    "frame",
    "network",
    "same",
    "show",
    "transport",
]
