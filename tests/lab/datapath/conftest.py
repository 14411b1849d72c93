"""A cgroup, and programs to load into the state directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfproxy.datapath import abi, features, loader, netns_cookie
from bpfproxy.datapath.loader import Loaded, LoadSpec
from bpfproxy.lab.sandbox import Sandbox
from tests.lab.datapath import devices

MAPS = (
    "frontends4",
    "frontends6",
    "frontend_stats",
    "sets",
    "set_names",
    "round_robin",
    "backends",
    "backend_stats",
    "slots",
    "node_addresses",
    "affinities",
    "udp_sessions",
    "udp_sockets",
    "tcp_peers",
    "metrics",
)

Specs = Callable[..., LoadSpec]


@pytest.fixture
def links(state: Path) -> Path:
    """Where links are pinned."""
    return state / "bpf" / "links"


@pytest.fixture
def group(sandbox: Sandbox) -> Path:
    """An empty cgroup."""
    return sandbox.cgroup()


@pytest.fixture
def specs(state: Path) -> Specs:
    """Makes specifications of sock_lb with small maps; arguments change the sizes of maps."""

    def make(**sizes: int) -> LoadSpec:
        pin_dir = state / "bpf" / "maps"
        pin_dir.mkdir(exist_ok=True)
        constants = {name: 0 for name, _ in abi.ffi.typeof("struct config").fields}
        constants["node_netns"] = netns_cookie.current()
        constants["has_set_retval"] = int(features.has_helper("cgroup/connect4", "bpf_set_retval"))
        return LoadSpec(constants=constants, sizes=dict.fromkeys(MAPS, 64) | sizes, pin_dir=pin_dir)

    return make


@pytest.fixture
def loaded(compiled: Path, state: Path) -> Iterator[Loaded]:
    with loader.load(devices.spec(compiled, state / "bpf" / "maps"), "prebuilt") as found:
        yield found


@pytest.fixture
def other(compiled: Path, state: Path) -> Iterator[Loaded]:
    """The same programs over the same maps, loaded again: an upgrade, or somebody else's."""
    with loader.load(devices.spec(compiled, state / "bpf" / "maps"), "prebuilt") as found:
        yield found


@pytest.fixture
def others(state: Path) -> Path:
    """Where somebody else pins links."""
    return state / "bpf" / "others"
