"""Random and mutated packets: none leaves with an error that it did not bring, and each is counted once.

BPFPROXY_FUZZ_PACKETS sets how many go through each hook, BPFPROXY_FUZZ_SEED where they start.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from bpfproxy.model.frontend import FrontendKind, Masquerade, OnEmpty
from bpfproxy.model.service import Protocol
from tests.packet import packets as pk
from tests.packet.datapath import (
    CLIENT,
    NODE,
    OTHER_VIP,
    POD,
    REMOTE_POD,
    SNAT,
    VIP,
    Datapath,
    Layer,
    Service,
    backend,
    frontend,
)
from tests.packet.packets import frame
from tests.packet.test_icmp import packet, too_big
from tests.packet.test_shapes import ether, fragments

COUNT = int(os.environ.get("BPFPROXY_FUZZ_PACKETS", "20000"))
SEED = int(os.environ.get("BPFPROXY_FUZZ_SEED", "1"))
ETHERTYPES = {0x0800: 4, 0x86DD: 6}


def services() -> Iterator[Service]:
    for family in (4, 6):
        any_address = "0.0.0.0" if family == 4 else "::"
        for protocol in Protocol:
            local = backend(POD[family], 8080, protocol)
            remote = backend(REMOTE_POD[family], 8080, protocol, local=False)
            name = f"{protocol.name}{family}".lower()
            yield Service(frontend(VIP[family], 80, protocol), (local,), name=f"local-{name}")
            yield Service(frontend(VIP[family], 81, protocol), (remote,), name=f"remote-{name}")
            yield Service(frontend(OTHER_VIP[family], 80, protocol), (local,), name=f"same-{name}")
            yield Service(frontend(VIP[family], 82, protocol), (), name=f"empty-{name}")
            yield Service(frontend(VIP[family], 83, protocol), (), on_empty=OnEmpty.DROP, name=f"drop-{name}")
            yield Service(
                frontend(any_address, 30080, protocol), (local, remote), FrontendKind.NODE_PORT,
                masquerade=Masquerade.ALWAYS, affinity=60, name=f"node-port-{name}",
            )  # fmt: skip


def corpus() -> list[bytes]:
    found: list[bytes] = []
    for family in (4, 6):
        client, pod, remote = (CLIENT[family], 40000), (POD[family], 8080), (REMOTE_POD[family], 8080)
        vips = [(VIP[family], port) for port in (80, 81, 82, 83)] + [(OTHER_VIP[family], 80), (NODE[family], 30080)]
        for protocol in Protocol:
            for to in [*vips, pod]:
                found += [frame(protocol, client, to, flags=flags) for flags in ("S", "A", "FA", "R")]
                found += fragments(family, protocol, client, to) if protocol is not Protocol.SCTP else []
            found += [frame(protocol, pod, client), frame(protocol, pod, (VIP[family], 80))]
            found += [frame(protocol, remote, (NODE[family], SNAT[0] + number)) for number in range(4)]
            for size in (8, 40):
                about = packet(protocol, (VIP[family], 80), client)
                found.append(too_big(NODE[family], VIP[family], about, size))
                about = packet(protocol, client, pod)
                found.append(too_big(NODE[family], client[0], about, size))
                about = packet(protocol, (NODE[family], SNAT[0]), remote)
                found.append(too_big(pod[0], NODE[family], about, size))
        if family == 4:
            ip: Any = pk.IP(src=client[0], dst=VIP[4], options=[pk.IPOption_Router_Alert()])
        else:
            ip = pk.IPv6(src=client[0], dst=VIP[6]) / pk.IPv6ExtHdrHopByHop() / pk.IPv6ExtHdrDestOpt()
        found.append(ether(ip / pk.transport(Protocol.UDP, 40000, 80)))
    return found


def mutate(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        at = rng.randrange(12, len(data))
        data[at] = rng.choice((rng.randrange(256), data[at] ^ 1 << rng.randrange(8), other[at % len(other)]))
    match rng.randrange(12):
        case 0:
            del data[rng.randrange(14, len(data)) :]
        case 1:
            data += rng.randbytes(rng.randrange(40))
        case 2:
            data[14:] = other[14:]
        case 3:
            data[rng.randrange(14, len(data)) :] = rng.randbytes(rng.randrange(1, 60))
    return bytes(data).ljust(34 if data[12:14] == b"\x08\x00" else 54, b"\0")


def error_of(data: bytes) -> int:
    """What the one's complement sum of `data` lacks to be right."""
    data += bytes(len(data) % 2)
    return sum(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)) % 0xFFFF


def errors(raw: bytes, start: int, family: int, protocol: int, l4: int) -> tuple[int, ...]:
    """Checksum errors of the IP header and of what it carries, where `protocol` is at `l4`."""
    if family == 4:
        addresses, header = raw[start + 12 : start + 20], error_of(raw[start:l4])
    else:
        addresses, header = raw[start + 8 : start + 40], 0
    body = raw[l4:]
    if protocol in (6, 17, 58):
        if family == 4 and protocol == 17 and body[6:8] == b"\0\0":
            return header, -1
        return header, error_of(addresses + bytes([0, protocol]) + len(body).to_bytes(2) + body)
    return header, error_of(body) if protocol == 1 else 0


def check(raw: bytes, found: bytes) -> None:
    """`found` is `raw`, translated or answered."""
    family = ETHERTYPES[int.from_bytes(raw[12:14])]
    l4 = 14 + (raw[14] & 15) * 4 if family == 4 else 54
    protocol = raw[23] if family == 4 else raw[20]
    answer = found[l4:][:2] in (b"\x03\x03", b"\x01\x04") and found[23 if family == 4 else 20] in (1, 58)
    if answer and protocol not in (1, 58):
        l4 = 34 if family == 4 else 54
        assert errors(found, 14, family, 1 if family == 4 else 58, l4) == (0, 0)
        assert found[-(l4 - 14) - 8 :] == raw[14 : l4 + 8]
        return
    assert len(found) == len(raw)
    if family == 4 and int.from_bytes(raw[20:22]) & 0x1FFF:
        protocol = 0
    if family == 6:
        later = False
        while protocol in (0, 60, 44):
            later = later or (protocol == 44 and bool(int.from_bytes(raw[l4 + 2 : l4 + 4]) & 0xFFF8))
            protocol, l4 = raw[l4], l4 + (8 if protocol == 44 else raw[l4 + 1] * 8 + 8)
        protocol = 0 if later else protocol
    assert errors(found, 14, family, protocol, l4) == errors(raw, 14, family, protocol, l4)


@pytest.mark.parametrize("hook", ["xdp", "tc_in", "tc_out"])
def test_fuzz(dp: Datapath, hook: str) -> None:
    layer: Layer = "xdp" if hook == "xdp" else "tc"
    dp.serve(*services())
    rng = random.Random(SEED)
    seeds = corpus()
    changed = relevant = 0
    for raw in seeds:  # flows to be hit
        dp.run("xdp" if hook == "tc_out" else hook, raw)
    dp.clear_counters()
    with dp.inside():
        for _ in range(COUNT):
            raw = mutate(rng, rng.choice(seeds), rng.choice(seeds))
            relevant += raw[12:14] in (b"\x08\x00", b"\x86\xdd") or (
                layer == "xdp" and tagged_family(raw) in ETHERTYPES
            )
            found = dp.run_here(hook, raw)
            assert found.verdict in pk.VERDICTS[layer], raw.hex()
            if found.packet != raw and raw[12:14] in (b"\x08\x00", b"\x86\xdd"):
                changed += 1
                try:
                    check(raw, found.packet)
                except (AssertionError, IndexError):
                    print(raw.hex(), found.packet.hex())
                    raise
    assert sum(dp.counted().values()) == relevant
    assert changed > COUNT // 50
    assert not {name for name in dp.counted() if name.endswith(".BROKEN")}


def tagged_family(raw: bytes) -> int:
    """The ethertype behind up to two VLAN tags."""
    at = 12
    for _ in range(2):
        if raw[at : at + 2] not in (b"\x81\x00", b"\x88\xa8"):
            break
        at += 4
    return int.from_bytes(raw[at : at + 2])
