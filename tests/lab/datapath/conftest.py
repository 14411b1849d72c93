"""A state directory with a bpffs, a cgroup, and programs to load, each with a name of its own and gone afterwards."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfproxy.datapath import abi, attach, bpffs, features, loader, netns_cookie
from bpfproxy.datapath.loader import Loaded, LoadSpec
from bpfproxy.lab import cgroup, netns
from tests.lab.datapath import devices
from tests.lab.datapath.devices import Net

_numbers = itertools.count()

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
def state(tmp_path: Path) -> Iterator[Path]:
    """A state directory whose bpffs is mounted."""
    top = bpffs.mount(tmp_path)
    yield tmp_path
    attach.detach_all(top / "links")
    bpffs.unmount(tmp_path)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def links(state: Path) -> Path:
    """Where links are pinned."""
    return state / "bpf" / "links"


@pytest.fixture
def group() -> Iterator[Path]:
    """An empty cgroup."""
    path = cgroup.mount_point() / f"bpfproxy-test-{os.getpid()}-{next(_numbers)}"
    path.mkdir()
    yield path
    cgroup.remove(path)


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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with device_test.bpf.c and its object."""
    directory = tmp_path_factory.mktemp("device")
    devices.compile_programs(directory)
    return directory


@pytest.fixture
def node() -> Iterator[Net]:
    """The namespace that the test's thread is in."""
    with Net() as made, netns.inside(made.name):
        yield made


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
def others(state: Path) -> Iterator[Path]:
    """Where somebody else pins links."""
    yield state / "bpf" / "others"
    attach.detach_all(state / "bpf" / "others")
