"""The bench's measures of packets in their short form: packets come to where they should. No time decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest

from bpfproxy.bench import lockstep, outside, packet
from bpfproxy.bench.figures import Figure
from bpfproxy.bench.ground import Ground
from bpfproxy.bench.traffic import Packets, Traffic, Way, packets
from bpfproxy.bench.wire import make_far, make_node
from bpfproxy.model.address import Family

Measure = Callable[..., Iterator[Figure]]


@pytest.fixture
def ground() -> Iterator[Ground]:
    with Ground() as made:
        yield made


def titles(measure: Measure, ground: Ground) -> list[str]:
    figures = list(measure(ground, quick=True))
    assert all(math.isfinite(figure.value) for figure in figures)
    found = [figure.name for figure in figures]
    assert len(set(found)) == len(found)
    return found


def test_packet(ground: Ground) -> None:
    # The measure itself compares what the datapath counted with what was sent, and looks at packets of each kind.
    found = titles(packet.measure, ground)
    kinds = ("hit, ", "10,000 flows, ", "new flow, one entry", "new flow, two entries", "evicting", "not ours")
    for layer in ("XDP", "tc"):
        for family in (4, 6):
            mine = [title for title in found if title.startswith(f"{layer}, IPv{family}: ")]
            assert all(any(kind in title for title in mine) for kind in kinds), mine
    assert "floor: XDP_TX, link addresses swapped" in found
    assert all(f"floor: LRU, IPv{family} key: new row, evicting" in found for family in (4, 6))


def test_lockstep(ground: Ground) -> None:
    # The measure itself fails if packets do not come out translated, with right checksums.
    found = titles(lockstep.measure, ground)
    ways = ("raw XDP forward", "bpfproxy, XDP", "bpfproxy, tc", "kernel IP forwarding", "iptables", "nftables")
    assert all(any(title.startswith(way) for title in found) for way in ways)


def test_outside(ground: Ground) -> None:
    # The measure itself fails unless the right server answers, through a translation where there should be one.
    found = titles(outside.measure, ground)
    for family in (4, 6):
        assert f"TCP connect–request–close, IPv{family}: NodePort / direct" in found
        assert f"one TCP stream, IPv{family}: NodePort / direct" in found


@pytest.fixture
def wire(ground: Ground) -> Iterator[tuple[Packets, Way]]:
    """A generator, and a node that throws everything away."""
    far = make_far(ground)
    node = make_node(ground, "none", far)
    with packets(ground, far) as generator:
        generator.attach("sink", node.netns, node.index("up0"))
        yield generator, Way(node.far_index("gen"))


@pytest.mark.parametrize("family", [4, 6])
def test_packets_arrive_with_right_checksums(wire: tuple[Packets, Way], family: Family) -> None:
    generator, way = wire
    generator.make(Traffic(family, 0x0A600001, flows=40_000, destinations=3, port=8080))
    # So few that no queue can be full.
    assert generator.send(way, 64, verify=True).share == 1


def test_packets_to_another_port_do_not_count(wire: tuple[Packets, Way]) -> None:
    generator, way = wire
    generator.make(Traffic(4, 0x0A600001, port=8081))
    assert generator.send(way, 64).share == 0
