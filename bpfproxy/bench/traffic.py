"""The process that makes packets (packets.c), as Python calls."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bpfproxy.bench.ground import BenchError, Ground
from bpfproxy.bench.objects import address
from bpfproxy.bench.wire import CLIENT, ETHERNET, PORT
from bpfproxy.lab.place import spawn
from bpfproxy.model.address import Family, format_address

Layer = Literal["xdp", "tc"]
ENDLESS = 0xFFFFFFFF
"""Flows: each packet is of another one."""
_LENGTH: dict[Family, int] = {4: 64, 6: 84}
"""Of frames: 22 bytes of data."""


class GeneratorError(BenchError):
    """The generator ended; it has said why on standard error."""


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
        return [self.family, source, 20000, destination, self.port, *ways, _LENGTH[self.family], ETHERNET]


@dataclass(frozen=True)
class Run:
    """What `Packets.test` found."""

    nanoseconds: float
    """Of each packet."""
    verdict: int
    frame: bytes
    """The packet as it was left, if it was one."""


class Packets:
    """The process that packets.c describes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def _ask(self, *words: object) -> list[str]:
        assert self._process.stdin
        assert self._process.stdout
        print(*words, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().split()
        if not answer:
            raise GeneratorError(f"the generator of packets ended at: {' '.join(map(str, words))}")
        return answer

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

    def clear(self, map_: str | Path) -> int:
        """Empty a map: of packets.bpf.c, or a pinned one. Returns how many rows it had."""
        return int(self._ask("clear", map_)[0])


@contextmanager
def packets(ground: Ground, namespace: str) -> Iterator[Packets]:
    """A generator in a namespace, on the last CPU; it ends with the block."""
    command = [str(ground.compile("packets")), str(ground.compile_bpf("packets"))]
    process = spawn(
        command,
        namespace=namespace,
        cgroup=ground.plain,
        lab_id=ground.lab_id,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Packets(process)
    finally:
        process.kill()
        process.communicate()
