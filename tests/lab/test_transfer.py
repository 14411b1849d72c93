"""Large transfers from outside arrive as they were sent, there and back, with all offloads that the way allows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from bpfproxy.lab.cases import Via
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import SPOTS, Family
from bpfproxy.lab.topology import CHECKSUM, UPLINK
from tests.lab.conftest import Stage

SIZE = 32 << 20
VIAS: tuple[Via, ...] = ("ClusterIP", "NodePort", "LoadBalancer")
GSO = {"tx-tcp-segmentation", "tx-tcp6-segmentation"}
GRO = "rx-gro"


@pytest.fixture
def offloaded(outside: Lab) -> Iterator[None]:
    """GRO on all the way, which veths have not by default; segmentation they have. Checksums are left to the device
    unless XDP is on the way."""
    with contextlib.ExitStack() as undo:
        for spot in SPOTS:
            outside.topology.offload(spot, UPLINK, GRO, on=True)
            undo.callback(outside.topology.offload, spot, UPLINK, GRO, on=False)
            features = outside.topology.offloads(spot, UPLINK)
            assert GRO in features
            if not outside.topology.xdp:
                assert {*GSO, CHECKSUM} <= features
        yield


@pytest.mark.parametrize("outside", ["tc", "xdp", "tc-host-routing", "xdp-host-routing"], indirect=True)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("backend", ["pod1a", "pod2a"], ids=["local", "remote"])
def test_a_large_transfer_arrives_whole(stage: Stage, offloaded: None, backend: str, family: Family) -> None:
    scene = stage(backend)
    for via in VIAS:
        done = scene.transfer(SIZE, client="client", family=family, via=via)
        assert done.error == ""
        assert done.intact
        assert done.reply is not None
        assert done.reply.place == backend
        assert done.peer == scene.to(client="client", family=family, via=via)
