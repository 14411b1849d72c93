"""For tests of conntrack: maps, a clock that stands still, and a writer of flows."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfproxy.proxiers.ebpf import flowcodec
from bpfproxy.proxiers.ebpf.conntrack import Conntrack
from bpfproxy.proxiers.ebpf.packet import Timeouts
from bpfproxy.proxiers.ebpf.snapshot import Maps
from tests.lab.conftest import NewMaps
from tests.lab.conntrack.flow_rows import Clock, Writer


@pytest.fixture
def maps(state: Path, new_maps: NewMaps) -> Maps:
    return new_maps(state / "bpf" / "maps-test")


@pytest.fixture
def clock() -> Clock:
    return Clock(flowcodec.now())


@pytest.fixture
def conntrack(maps: Maps, clock: Clock) -> Conntrack:
    return Conntrack(maps, Timeouts(), clock)


@pytest.fixture
def rows(maps: Maps, clock: Clock) -> Writer:
    return Writer(maps, clock)
