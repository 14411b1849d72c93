"""What may become of a packet, checked without the code under test and without scapy, in microseconds.

Sums are modulo 0xffff, in which 0x10000 is 1: the remainder of a whole message, read as one number, is its one's
complement sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ETHERTYPES: Final = {0x0800: 4, 0x86DD: 6}
TAGS: Final = (0x8100, 0x88A8)
ICMP: Final = {4: 1, 6: 58}
TCP, UDP, SCTP, FRAGMENT = 6, 17, 132, 44
PORTS: Final = (TCP, UDP, SCTP)
CHECKSUM_AT: Final = {TCP: 16, UDP: 6, 58: 2, 1: 2}
ERRORS: Final = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
OURS: Final = {4: ((3, 3), (3, 4), (11, 0)), 6: ((1, 4), (2, 0), (3, 0))}
"""Types and codes of the answers that the datapath gives by itself."""


@dataclass(slots=True)
class Dissected:
    """Where things are in a packet, counted from the start of `data`."""

    data: bytes
    family: int
    l3: int
    l4: int
    protocol: int
    fragment: bytes | None
    """Identification, of fragments."""
    later: bool
    """A fragment without a transport header."""

    @property
    def addresses(self) -> bytes:
        start = self.l3 + (12 if self.family == 4 else 8)
        return self.data[start : start + (8 if self.family == 4 else 32)]

    @property
    def ports(self) -> bytes:
        return self.data[self.l4 : self.l4 + 4]

    @property
    def hops(self) -> int:
        return self.data[self.l3 + (8 if self.family == 4 else 7)]


def ethertype(raw: bytes) -> tuple[int, int]:
    """(ethertype, where the packet begins); tags of VLAN 0, two at most, are looked behind."""
    at = 12
    for _ in range(2):
        if int.from_bytes(raw[at : at + 2]) not in TAGS or int.from_bytes(raw[at + 2 : at + 4]) & 0xFFF:
            break
        at += 4
    return int.from_bytes(raw[at : at + 2]), at + 2


def dissect(data: bytes, l3: int, family: int) -> Dissected | None:
    """None: headers that are cut short, or none that we know."""
    if len(data) < l3 + (20 if family == 4 else 40) or data[l3] >> 4 != family:
        return None
    if family == 4:
        l4 = l3 + (data[l3] & 15) * 4
        bits = int.from_bytes(data[l3 + 6 : l3 + 8])
        fragment = data[l3 + 4 : l3 + 6] if bits & 0x3FFF else None
        return Dissected(data, 4, l3, l4, data[l3 + 9], fragment, bool(bits & 0x1FFF))
    protocol, l4, fragment, later = data[l3 + 6], l3 + 40, None, False
    while protocol in (0, 60, FRAGMENT) and not later:
        if len(data) < l4 + 8:
            return None
        if protocol == FRAGMENT:
            bits = int.from_bytes(data[l4 + 2 : l4 + 4])
            fragment = data[l4 + 4 : l4 + 8] if bits & 0xFFF9 else fragment
            later = bool(bits & 0xFFF8)
            protocol, l4 = data[l4], l4 + 8
        else:
            protocol, l4 = data[l4], l4 + data[l4 + 1] * 8 + 8
    return Dissected(data, 6, l3, l4, protocol, fragment, later)


def quoted(p: Dissected) -> Dissected | None:
    """The packet in an ICMP error, if it has ports."""
    start = p.l4 + 8
    if p.protocol != ICMP[p.family] or p.later or p.data[p.l4] not in ERRORS[p.family]:
        return None
    inner = dissect(p.data, start, p.family)
    if inner is None or inner.later or inner.protocol not in PORTS or len(p.data) < inner.l4 + 8:
        return None
    return inner


# ---- sums --------------------------------------------------------------------------------------------------------


def remainder(data: bytes) -> int:
    return int.from_bytes(data if len(data) % 2 == 0 else data + b"\0") % 0xFFFF


def header_error(p: Dissected) -> int:
    """What the sum of an IPv4 header lacks to be right."""
    return remainder(p.data[p.l3 : p.l3 + (p.data[p.l3] & 15) * 4]) if p.family == 4 else 0


def transport_error(p: Dissected, end: int | None = None) -> int | None:
    """The same for what the packet carries. None: it has no such checksum, or it is cut off."""
    if p.later or p.protocol not in CHECKSUM_AT:
        return None
    at = p.l4 + CHECKSUM_AT[p.protocol]
    if len(p.data) < at + 2 or (p.protocol == UDP and p.data[at : at + 2] == b"\0\0"):
        return None
    body = p.data[p.l4 : end]
    if p.protocol == 1:
        return remainder(body)
    return (remainder(body) + remainder(p.addresses) + p.protocol + len(body)) % 0xFFFF


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE: Final = _crc_table()


def crc_error(p: Dissected) -> int | None:
    """What an SCTP message's CRC32c is away from the right one. None: the message is not whole."""
    length = int.from_bytes(p.data[p.l3 + 2 : p.l3 + 4]) if p.family == 4 else 40 + int.from_bytes(
        p.data[p.l3 + 4 : p.l3 + 6]
    )  # fmt: skip
    end = p.l3 + length
    if p.later or end > len(p.data) or end < p.l4 + 12:
        return None
    crc = 0xFFFFFFFF
    for byte in p.data[p.l4 : p.l4 + 8] + bytes(4) + p.data[p.l4 + 12 : end]:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF ^ int.from_bytes(p.data[p.l4 + 8 : p.l4 + 12], "little")


# ---- packets -----------------------------------------------------------------------------------------------------


def check_answer(p: Dissected, found: bytes, sent: bool) -> None:
    """`found` is an ICMP error about the packet, whole and right, sent back to where that came from."""
    assert sent
    header = 20 if p.family == 4 else 40
    quote = header + 8
    assert len(found) == p.l3 + header + 8 + quote
    assert found[:6] + found[6:12] == p.data[6:12] + p.data[:6]
    assert found[12 : p.l3] == p.data[12 : p.l3]
    answer = dissect(found, p.l3, p.family)
    assert answer is not None
    assert answer.protocol == ICMP[p.family]
    half = len(p.addresses) // 2
    assert answer.addresses[half:] == p.addresses[:half]
    assert (found[answer.l4], found[answer.l4 + 1]) in OURS[p.family]
    assert (header_error(answer), transport_error(answer)) == (0, 0)
    assert found[p.l3] == (0x45 if p.family == 4 else 0x60)
    length = int.from_bytes(found[p.l3 + 2 : p.l3 + 4]) if p.family == 4 else 40 + int.from_bytes(
        found[p.l3 + 4 : p.l3 + 6]
    )  # fmt: skip
    assert length == len(found) - p.l3
    assert found[answer.l4 + 8 :] == p.data[p.l3 : p.l3 + quote]
    assert not p.later
    assert p.protocol != ICMP[p.family]


def check_translated(p: Dissected, found: bytes, sent: bool) -> Dissected:
    """`found` is the packet with other addresses and ports: sums lack what they lacked before, all else is the same."""
    raw = p.data
    assert len(found) == len(raw)
    q = dissect(found, p.l3, p.family)
    assert q is not None
    allowed = [(p.l3 + 10, p.l3 + 20), (p.l3 + 8, p.l3 + 9)] if p.family == 4 else [(p.l3 + 7, p.l3 + 40)]
    if sent:
        allowed.append((0, 12))
    inner, fresh = quoted(p), quoted(q)
    if inner is not None:
        start = inner.l3
        allowed.append((p.l4 + 2, p.l4 + 4))
        allowed += [(start + 10, start + 20)] if p.family == 4 else [(start + 8, start + 40)]
        allowed += _transport_fields(inner)
        assert fresh is not None
        assert header_error(fresh) == header_error(inner)
        assert transport_error(fresh) == transport_error(inner)
    elif not p.later:
        allowed += _transport_fields(p)
    expected = bytearray(raw)
    for start, end in allowed:
        expected[start:end] = found[start:end]
    assert expected == found
    assert q.hops == p.hops - sent
    assert header_error(q) == header_error(p)
    assert transport_error(q) == transport_error(p)
    if p.protocol == SCTP:  # of a fragmented message it could not be right
        assert p.fragment is None
        assert crc_error(p) in (None, crc_error(q))
    return q


def _transport_fields(p: Dissected) -> list[tuple[int, int]]:
    """What a translation may change: ports and checksum, as far as they are there."""
    if p.protocol not in PORTS:
        return [(p.l4 + 2, p.l4 + 4)]
    size = 4 if p.protocol == SCTP else 2
    at = p.l4 + (8 if p.protocol == SCTP else CHECKSUM_AT[p.protocol])
    return [(p.l4, p.l4 + 4), (at, min(at + size, max(at, len(p.data))))]
