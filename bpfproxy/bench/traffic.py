"""The process that makes packets (packets.c), as Python calls."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bpfproxy.bench.ground import Ground
from bpfproxy.bench.objects import address
from bpfproxy.bench.tool import Tool, ToolError, tool
from bpfproxy.bench.wire import CLIENT, ETHERNET, PORT, TARGET_PORT
from bpfproxy.lab import netns
from bpfproxy.model.address import Family, format_address

Layer = Literal["xdp", "tc"]
LAYERS: dict[Layer, str] = {"xdp": "XDP", "tc": "tc"}
"""Their titles."""
ENDLESS = 0xFFFFFFFF
"""Flows: each packet is of another one."""


@dataclass(frozen=True)
class Traffic:
    """UDP packets of `flows` client ports, in turns, to `destinations` addresses, in turns."""

    family: Family
    destination: int
    """Address, as a number."""
    flows: int = 1
    destinations: int = 1
    first: int = 0
    """Flow of the first packet."""
    port: int = PORT

    def words(self) -> list[object]:
        """As the generator takes them."""
        source = format_address(address(self.family, CLIENT[self.family]))
        destination = format_address(address(self.family, self.destination))
        ways = (self.destinations, self.flows, self.first)
        return [self.family, source, 20000, destination, self.port, *ways, ETHERNET]


@dataclass(frozen=True)
class Run:
    """What `Packets.test` found."""

    nanoseconds: float
    """Of each packet."""
    verdict: int
    frame: bytes
    """The packet as it was left, if it was one."""


@dataclass(frozen=True)
class Way:
    """By which packets go to a sink."""

    ifindex: int
    """Where they leave."""
    arriving_port: int = TARGET_PORT
    """Their destination port in the end; others do not count."""
    forward_to: int = 0
    """Where `forward` of packets.bpf.c sends them."""


@dataclass(frozen=True)
class Sent:
    """What `Packets.send` found."""

    nanoseconds: float
    """Of each packet, from its making to the sink."""
    share: float
    """Of packets that came to the sink as they should."""


class Packets:
    """The process that packets.c describes."""

    def __init__(self, generator: Tool) -> None:
        self._ask = generator.ask

    def make(self, traffic: Traffic) -> None:
        """What is made from now on."""
        self._ask("traffic", *traffic.words())

    def test(self, layer: Layer, program: int | str, count: int, ifindex: int = 0) -> Run:
        """Give packets to a program: one that is loaded, by its id, or one of packets.bpf.c."""
        took, verdict, *frame = self._ask("test", layer, program, ifindex, count)
        return Run(int(took) / count, int(verdict), bytes.fromhex(frame[0]) if frame else b"")

    def bare(self, layer: Layer, program: int | str, count: int) -> float:
        """Nanoseconds of a program that gets the same packet again and again."""
        return int(self._ask("bare", layer, program, 0, count)[0]) / count

    def attach(self, program: str, namespace: str, ifindex: int) -> None:
        """A program of packets.bpf.c at a device, by XDP."""
        self._ask("attach", program, netns.DIRECTORY / namespace, ifindex)

    def send(self, way: Way, count: int, *, verify: bool = False) -> Sent:
        """Send packets to a node; `verify`: those with a wrong checksum do not count as arrived."""
        took, arrived = self._ask("send", way.ifindex, count, way.forward_to, way.arriving_port, int(verify))
        return Sent(int(took) / count, int(arrived) / count)

    def clear(self, map_: str | Path) -> int:
        """Empty a map: of packets.bpf.c, or a pinned one. Returns how many rows it had."""
        return int(self._ask("clear", map_)[0])


@contextmanager
def packets(ground: Ground, namespace: str) -> Iterator[Packets]:
    """A generator in a namespace, on the last CPU; it ends with the block."""
    arguments = (ground.compile_bpf("packets"), _ksoftirqd() / "schedstat")
    with tool(ground, "packets", arguments, namespace) as generator:
        yield Packets(generator)


def _ksoftirqd() -> Path:
    """The directory in /proc of the thread that receives packets on the last CPU, when the kernel thinks that they are
    too many."""
    name = f"ksoftirqd/{max(os.sched_getaffinity(0))}\n"
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if path.read_text() == name:
                return path.parent
    raise ToolError(f"there is no {name.strip()}: lockstep cannot be measured in a container without /proc")
