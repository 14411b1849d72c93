"""What the fuzzer begins with: services of every kind, packets that concern them, and how those are spoilt."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from bpfproxy.model.frontend import FrontendKind, Masquerade, OnEmpty
from bpfproxy.model.service import Protocol, Scheduler
from tests.packet import packets as pk
from tests.packet.checker import dissect, ethertype
from tests.packet.datapath import (
    CLIENT,
    NARROW_POD,
    NODE,
    OTHER_POD,
    OTHER_VIP,
    POD,
    REMOTE_POD,
    SNAT,
    VIP,
    Service,
    backend,
    frontend,
)
from tests.packet.packets import frame
from tests.packet.test_icmp import packet, too_big
from tests.packet.test_shapes import ether, fragments

SILENT_POD: Final = {4: "192.0.2.99", 6: "2001:db8:0:2::99"}
"""On the node's own network, without a neighbour entry."""
LOST_POD: Final = {4: "10.9.9.9", 6: "fd00:9::9"}
"""Where no route leads."""
STRANGER: Final = {4: "203.0.113.1", 6: "2001:db8:99::1"}
RANGE: Final = {4: ("198.51.100.0", 24), 6: ("2001:db8:51::", 64)}
PORTS: Final = (80, 81, 82, 83, 84, 85, 86, 87, 88)


def services() -> Iterator[Service]:
    """One for each way that a packet may go, in each protocol and family."""
    for family in (4, 6):
        any_address = "0.0.0.0" if family == 4 else "::"
        for protocol in Protocol:
            local, other = (backend(pod[family], 8080, protocol) for pod in (POD, OTHER_POD))
            remote, narrow, silent, lost = (
                backend(pod[family], 8080, protocol, local=False)
                for pod in (REMOTE_POD, NARROW_POD, SILENT_POD, LOST_POD)
            )
            name = f"{protocol.name}{family}".lower()
            vips = [frontend(VIP[family], port, protocol) for port in PORTS]
            yield Service(vips[0], (local,), name=f"local-{name}")
            yield Service(vips[1], (remote,), name=f"remote-{name}")
            yield Service(vips[2], (), name=f"empty-{name}")
            yield Service(vips[3], (), on_empty=OnEmpty.DROP, name=f"drop-{name}")
            yield Service(vips[4], (local, other), scheduler=Scheduler.RANDOM, name=f"random-{name}")
            yield Service(vips[5], (narrow,), name=f"narrow-{name}")
            yield Service(vips[6], (silent,), name=f"silent-{name}")
            yield Service(vips[7], (lost,), name=f"lost-{name}")
            yield Service(
                vips[8], (local,), FrontendKind.LOAD_BALANCER, name=f"ranges-{name}", source_ranges=[RANGE[family]]
            )
            yield Service(frontend(OTHER_VIP[family], 80, protocol), (local,), name=f"same-{name}")
            yield Service(
                frontend(any_address, 30080, protocol), (local, remote), FrontendKind.NODE_PORT,
                masquerade=Masquerade.ALWAYS, affinity=60, name=f"node-port-{name}",
            )  # fmt: skip


def arriving() -> list[bytes]:
    """Packets that concern those services, as they come to the node. They make flows."""
    found: list[bytes] = []
    for family in (4, 6):
        client, pod, remote = (CLIENT[family], 40000), (POD[family], 8080), (REMOTE_POD[family], 8080)
        vips = [*((VIP[family], port) for port in PORTS), (OTHER_VIP[family], 80), (NODE[family], 30080)]
        for protocol in Protocol:
            for to in [*vips, pod]:
                found += [frame(protocol, client, to, flags=flags) for flags in ("S", "A", "FA", "R")]
            found += fragments(family, protocol, client, vips[0]) + fragments(family, protocol, client, vips[1])
            found += [frame(protocol, (client[0], 40001), pod)]
            found += [frame(protocol, (STRANGER[family], 40000), vips[8]), frame(protocol, pod, client)]
            found += [frame(protocol, (POD[family], 40000), vips[0])]
            found += [frame(protocol, remote, (NODE[family], port), flags="A") for port in range(SNAT[0], SNAT[0] + 8)]
            found += [frame(protocol, client, vips[5], payload=bytes(1300))]
            found += [frame(protocol, client, vips[1], hops=hops) for hops in (0, 1)]
            for size in (8, 40):
                for inner, sender, receiver in (
                    ((vips[0], client), STRANGER, VIP),
                    ((client, pod), NODE, CLIENT),
                    ((client, pod), POD, CLIENT),
                    (((NODE[family], SNAT[0]), remote), STRANGER, NODE),
                    ((vips[1], client), STRANGER, VIP),
                ):
                    about = packet(protocol, *inner)
                    found.append(too_big(sender[family], receiver[family], about, size))
            tags: Any = pk.Ether(src=pk.ROUTER_MAC, dst=pk.UP_MAC) / pk.Dot1Q(vlan=0)
            inside = pk.network(client[0], VIP[family]) / pk.transport(protocol, 40000, 80)
            found += [bytes(tags / inside), bytes(tags / pk.Dot1Q(vlan=5) / inside)]
        ip: Any
        if family == 4:
            ip = pk.IP(src=client[0], dst=VIP[4], options=[pk.IPOption_Router_Alert()])
        else:
            ip = pk.IPv6(src=client[0], dst=VIP[6]) / pk.IPv6ExtHdrHopByHop() / pk.IPv6ExtHdrDestOpt()
        found.append(ether(ip / pk.transport(Protocol.UDP, 40000, 80)))
        echo: Any = pk.ICMP() if family == 4 else pk.ICMPv6EchoRequest()
        found.append(ether(pk.network(client[0], VIP[family]) / echo / pk.Raw(b"x" * 20)))
    found.append(bytes(pk.Ether(src=pk.ROUTER_MAC, dst=pk.UP_MAC, type=0x0806) / pk.Raw(bytes(46))))
    return found


def leaving() -> list[bytes]:
    """Packets as they leave the node once the arriving ones have been there: replies of its pods, and errors."""
    found: list[bytes] = []
    for family in (4, 6):
        client, pod = (CLIENT[family], 40000), (POD[family], 8080)
        for protocol in Protocol:
            for port in (40000, 40000, 40001, *range(SNAT[0], SNAT[0] + 64, 16)):
                found += [frame(protocol, pod, (client[0], port), flags=flags) for flags in ("SA", "FA")]
            found += fragments(family, protocol, pod, client) * 2
            found += [frame(protocol, pod, (STRANGER[family], 5)), frame(protocol, (NODE[family], 22), client)]
            for size in (8, 40):
                about = packet(protocol, client, pod)
                found += [too_big(sender[family], client[0], about, size) for sender in (NODE, POD)] * 4
    return found


@dataclass
class Fuzzer:
    """Endless packets, the same ones for the same seed: one in four as it was, from another port or address, or with a
    few other bytes; some cut short, run on, or made of two."""

    seeds: list[bytes]
    rng: random.Random

    def __post_init__(self) -> None:
        self._transport = [_transport_at(raw) for raw in self.seeds]

    def packet(self) -> bytes:
        rng = self.rng
        index = int(rng.random() * len(self.seeds))
        data = bytearray(self.seeds[index])
        kind = rng.getrandbits(6)
        at = self._transport[index]
        if kind < 24 and at:  # another port
            data[at : at + 2] = rng.getrandbits(16).to_bytes(2)
        elif kind < 28 and at:  # a port in use by others
            data[at + 2 : at + 4] = (SNAT[0] + rng.getrandbits(6)).to_bytes(2)
        elif kind < 50:
            for _ in range(1 + rng.getrandbits(2)):
                place = 12 + int(rng.random() * (len(data) - 12))
                data[place] ^= 1 << rng.getrandbits(3) if kind & 1 else rng.getrandbits(8)
        elif kind < 53:
            del data[14 + int(rng.random() * (len(data) - 14)) :]
        elif kind < 56:
            data += rng.randbytes(rng.getrandbits(5))
        elif kind < 58:
            other = self.seeds[int(rng.random() * len(self.seeds))]
            data[14 + int(rng.random() * 60) :] = other[14 + int(rng.random() * 60) :]
        elif kind < 60:
            data[14 + int(rng.random() * (len(data) - 14)) :] = rng.randbytes(1 + rng.getrandbits(6))
        elif kind == 60:
            data[14:] = rng.randbytes(len(data) - 14)
        # The kernel wants a whole IP header in a test run.
        return bytes(data.ljust(34 if data[12:14] == b"\x08\x00" else 54, b"\0"))


def _transport_at(raw: bytes) -> int:
    """Where the ports are; 0: nowhere."""
    kind, l3 = ethertype(raw)
    p = dissect(raw, l3, 4 if kind == 0x0800 else 6) if kind in (0x0800, 0x86DD) else None
    return p.l4 if p is not None and not p.later else 0
